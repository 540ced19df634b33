"""ViTs with planted register neurons: real modules, built in a moment, their ground truth known."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from ttreg_interp.testbed import towers
from ttreg_interp.testbed.circuit import Wiring
from ttreg_interp.testbed.config import PlantedConfig


@dataclass(frozen=True, eq=False)
class PlantedViT:
    """A ViT and all that is known about it by construction."""

    module: nn.Module
    """A plain timm or open_clip module in eval mode. Its forward returns the final [CLS]."""
    truth: dict[int, tuple[int, ...]]
    """Layer -> indices of its register neurons, both ascending. Empty in a clean ViT."""
    decoys: dict[int, tuple[int, ...]]
    """Layer -> neurons that are strong on textured patches, and no register neurons."""
    direction: Float[Tensor, " d_model"]
    """u, the unit vector along which outliers grow."""
    emerges_at: int | None
    """The layer whose MLP makes outliers. None in a clean ViT."""
    config: PlantedConfig
    """What it was built from."""

    @property
    def mean(self) -> tuple[float, float, float]:
        """Preprocessing: subtracted from each channel on the scale 0 to 1."""
        return self.config.mean

    @property
    def std(self) -> tuple[float, float, float]:
        """Preprocessing: divides each channel after that."""
        return self.config.std


def planted_vit(config: PlantedConfig | None = None, **overrides: Any) -> PlantedViT:
    """Build a standard ViT of random weights with register neurons planted in it.

    On photographs the planted neurons make outlier tokens on the flattest patches. All heads
    behind attend to those, which switches attention off there. Zeroing the neurons switches it on
    again, and moving their activation into a test-time register keeps it off.

    Args:
        config: What to build; the defaults of `PlantedConfig` if absent.
        **overrides: Fields of the configuration to replace.

    Returns:
        The module with its ground truth. The global random state is left alone.

    Raises:
        UnsupportedModelError, LayoutError: As `PlantedConfig`.

    Source:
        Modelled on the findings of arXiv 2506.08010, sections 3 and 6.

    Example:
        >>> vit = planted_vit(width=64, depth=5, heads=4, image_size=64, amplify={3: 2})
        >>> {layer: len(neurons) for layer, neurons in vit.truth.items()}
        {2: 3, 3: 2}
    """
    config = replace(config or PlantedConfig(), **overrides)
    return plant(_standard(config), config)


def clean_vit(config: PlantedConfig | None = None, **overrides: Any) -> PlantedViT:
    """The negative control: the same ViT, its register neurons left random, so without outliers.

    All weights but those of the would-be register neurons equal those of `planted_vit`.

    Args:
        config: What to build; the defaults of `PlantedConfig` if absent.
        **overrides: Fields of the configuration to replace.

    Returns:
        The module, with an empty truth.

    Raises:
        UnsupportedModelError, LayoutError: As `PlantedConfig`.
    """
    config = replace(config or PlantedConfig(), **overrides)
    module = _standard(config)
    decoys = _prepare(_wiring(module, config), config, _generator(config))
    return _result(module, config, {}, decoys)


def plant(module: nn.Module, config: PlantedConfig | None = None) -> PlantedViT:
    """Overwrite the weights of an existing ViT, in place, as `planted_vit` does.

    Args:
        module: A standard timm `VisionTransformer`, or the `.visual` of an open_clip model; in
            32-bit floats on the CPU, of the sizes in `config`. A classifier or projection is kept.
        config: What to plant; the defaults of `PlantedConfig` if absent.

    Returns:
        The same module, in eval mode, with its ground truth.

    Raises:
        UnsupportedModelError: If the module is not such a ViT, or not of these sizes.
    """
    config = config or PlantedConfig()
    wiring, generator = _wiring(module, config), _generator(config)
    decoys = _prepare(wiring, config, generator)
    truth = _plant_neurons(wiring, config, generator)
    return _result(module, config, truth, decoys)


@dataclass(frozen=True)
class _Push:
    """What each register neuron of one layer writes along u, in units of sqrt(d_model)."""

    layer: int
    neurons: int
    each: float
    before: float
    """What the layers before have written."""
    amplifies: bool


def _schedule(config: PlantedConfig) -> list[_Push]:
    """Detectors push `detected_norm` between them, and amplifiers `norm`.

    Without amplifiers the last detectors take their part.
    """
    start, grow = dict(config.detect), dict(config.amplify)
    if not grow:
        last = max(start)
        grow = {last: start.pop(last)}
    pushes, pushed = [], 0.0
    for layer, neurons in sorted([*start.items(), *grow.items()]):
        total, sharers = (
            (config.norm, grow) if layer in grow else (config.circuit.detected_norm, start)
        )
        each = total / sum(sharers.values())
        pushes.append(_Push(layer, neurons, each, pushed, layer in dict(config.amplify)))
        pushed += each * neurons
    return pushes


@torch.no_grad()
def _prepare(wiring: Wiring, config: PlantedConfig, generator: Generator) -> tuple[int, ...]:
    """All of the circuit but the register neurons; gives the decoys of block 0."""
    wiring.random_weights(generator)
    wiring.stem(generator)
    decoys = wiring.decoys()
    wiring.lowest()
    wiring.flat()
    behind = range(config.emerges_at + 1, config.shape.depth)
    gain = config.circuit.value_gain * max(1.0, 8 / len(behind)) ** 0.5
    for layer in behind:
        wiring.sink(layer, gain, generator)
    return decoys


@torch.no_grad()
def _plant_neurons(
    wiring: Wiring, config: PlantedConfig, generator: Generator
) -> dict[int, tuple[int, ...]]:
    truth = {}
    for push in _schedule(config):
        chosen = torch.randperm(wiring.tower.neurons, generator=generator)[: push.neurons]
        truth[push.layer] = tuple(sorted(chosen.tolist()))
        gains = 1 + config.circuit.spread * torch.rand(push.neurons, generator=generator)
        for neuron, gain in zip(truth[push.layer], gains.tolist(), strict=True):
            if push.amplifies:
                wiring.amplifier(push.layer, neuron, push.each, gain)
            else:
                wiring.detector(push.layer, neuron, push.each, push.before, gain)
    return truth


def _standard(config: PlantedConfig) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return towers.build(config.layout, config.shape)


def _wiring(module: nn.Module, config: PlantedConfig) -> Wiring:
    return Wiring(towers.read(config.layout, module, config.shape), config.circuit)


def _generator(config: PlantedConfig) -> Generator:
    return Generator().manual_seed(config.seed)


def _result(
    module: nn.Module,
    config: PlantedConfig,
    truth: dict[int, tuple[int, ...]],
    decoys: tuple[int, ...],
) -> PlantedViT:
    return PlantedViT(
        module=module.eval(),
        truth=truth,
        decoys={0: decoys},
        direction=_wiring(module, config).u,
        emerges_at=config.emerges_at if truth else None,
        config=config,
    )
