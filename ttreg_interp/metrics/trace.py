"""What a forward pass shows: norms and attention by layer; and what an intervention does to them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ttreg_interp.errors import ContractError, DataError
from ttreg_interp.hooked import HookedViT, TokenLayout
from ttreg_interp.hooked.intervened import NamedHook
from ttreg_interp.hooked.rows import AttentionRows
from ttreg_interp.interventions import Empty, Intervention
from ttreg_interp.metrics.arm_runs import ArmRun, ArmRuns, Observed
from ttreg_interp.metrics.intervals import Interval, mean_interval


@dataclass(frozen=True)
class Trace:
    """Norms and attention of one batch, in every layer."""

    norms: Float[Tensor, "layer batch token"]
    """Residual norm after each block, before the final norm."""
    attention: Float[Tensor, "layer batch head token"]
    """Attention of [CLS]; in a model without [CLS], the mean over patches as queries."""
    output: Float[Tensor, "batch ..."]
    """What the model returned."""
    layout: TokenLayout
    """Which rows are which."""

    @property
    def patch_norms(self) -> Float[Tensor, "layer batch patch"]:
        """Norms of the patches alone."""
        return self.norms[..., self.layout.patches]

    @property
    def register_attention(self) -> Float[Tensor, "layer batch head"]:
        """Attention that the test-time registers draw together."""
        return self.attention[..., self.layout.test_time_registers].sum(dim=-1)


@torch.no_grad()
def trace(model: HookedViT, pixels: Float[Tensor, "batch channel height width"]) -> Trace:
    """Norms, [CLS] attention and output of one forward pass; attention stays fused.

    Args:
        model: under whatever `model.intervened(...)` it stands.
        pixels: preprocessed images.

    Raises:
        ContractError: NaN or inf in the residual stream; names the first layer.
    """
    layout = model.layout(pixels.shape)
    queries = layout.cls if layout.n_cls else slice(0, None)
    rows = AttentionRows(model, queries)
    norms: list[Tensor] = []
    hooks: list[NamedHook] = [
        (f"blocks.{layer}.hook_resid_post", partial(_keep_norm, norms))
        for layer in range(model.cfg.n_layers)
    ]
    output = model.run_with_hooks(pixels, fwd_hooks=[*hooks, *rows.fwd_hooks()])
    stacked = torch.stack(norms)
    check_finite_layers(stacked, model.cfg.model_name)
    layout = layout.of_length(stacked.shape[-1])
    attention = torch.stack(
        [_read_rows(rows[layer], layout) for layer in range(model.cfg.n_layers)]
    )
    return Trace(stacked, attention, output, layout)


def _keep_norm(norms: list[Tensor], resid: Tensor, hook: Any) -> None:
    norms.append(resid.float().norm(dim=-1))


def _read_rows(rows: Float[Tensor, "batch head query key"], layout: TokenLayout) -> Tensor:
    readers = rows if layout.n_cls else rows[:, :, layout.patches]
    # Keys in front of the tokens are an attention bias: no token, so not on this axis.
    return readers.mean(dim=2)[..., rows.shape[-1] - layout.n_tokens :]


def check_finite_layers(by_layer: Float[Tensor, "layer ..."], model_name: str) -> None:
    """Stop at NaN or inf.

    Raises:
        ContractError: names the first layer that holds one.
    """
    broken = ~torch.isfinite(by_layer).flatten(1).all(dim=1)
    if broken.any():
        layer = int(broken.nonzero()[0])
        raise ContractError(
            f"{model_name}: NaN or inf in the residual stream after block {layer}. Check the pixels "
            "(preprocessed? finite?), the dtype (half precision overflows on outliers), the weights."
        )


@dataclass(frozen=True)
class LayerEffect:
    """One layer, before and after: means over images."""

    layer: int
    """Which block."""
    max_norm_before: float
    """Largest patch norm of the intact model."""
    max_norm_after: float
    """Largest patch norm under the intervention."""
    median_norm_before: float
    """Median patch norm of the intact model."""
    median_norm_after: float
    """Median patch norm under the intervention."""
    max_over_median_before: float
    """Mean over images of largest / median patch norm."""
    max_over_median_after: float
    """The same under the intervention."""
    max_attention_before: float
    """Largest attention (mean over heads) that one patch draws from [CLS]."""
    max_attention_after: float
    """The same under the intervention."""
    attention_on_register: float
    """Attention that the test-time registers draw from [CLS], mean over heads and images."""


@dataclass(frozen=True)
class Example:
    """The maps of one image, before and after."""

    name: str
    """File name, or its place in the batch."""
    norms_before: Float[Tensor, "layer height width"]
    """Patch norms of the intact model."""
    norms_after: Float[Tensor, "layer height width"]
    """Patch norms under the intervention."""
    attention_before: Float[Tensor, "layer height width"]
    """[CLS] attention to patches, mean over heads, of the intact model."""
    attention_after: Float[Tensor, "layer height width"]
    """The same under the intervention."""


@dataclass(frozen=True)
class Effect:
    """What an intervention does to a model on some images."""

    intervention: Intervention
    """What was done."""
    n_images: int
    """On how many images."""
    layers: tuple[LayerEffect, ...]
    """Layer by layer."""
    relative_change: Interval
    """Mean over images of ||output - intact|| / ||intact||."""
    cosine: Interval
    """Mean cosine between the two outputs."""
    same_top1: Interval | None
    """Share of images with the same largest output; None where the output is no classifier's."""
    examples: tuple[Example, ...]
    """Maps of the first images."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the maps."""
        return {
            "intervention": self.intervention.to_dict(),
            "n_images": self.n_images,
            "layers": [vars(layer) for layer in self.layers],
            "output": {
                "relative_change": self.relative_change.to_dict(),
                "cosine": self.cosine.to_dict(),
                "same_top1": None if self.same_top1 is None else self.same_top1.to_dict(),
            },
        }


def measure_effect(
    model: HookedViT,
    batches: Iterable[Any],
    intervention: Intervention,
    n_examples: int = 0,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Effect:
    """Run images with and without an intervention, and say what changed; see `measure_effects`."""
    arms = {"": intervention}
    return measure_effects(model, batches, arms, n_examples, seed, progress)[""]


@torch.no_grad()
def measure_effects(
    model: HookedViT,
    batches: Iterable[Any],
    arms: Mapping[str, Intervention],
    n_examples: int = 0,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Effect]:
    """Run images through the intact model and under each arm, and say what each changed.

    The intact model runs once, and every arm from the block on where it parts from another one; what
    is measured has the bits of arms that run alone.

    Args:
        model: any HookedViT.
        batches: pixel tensors, or what `images(...).batches(...)` yields.
        arms: what to do, by name.
        n_examples: of how many images to keep the maps.
        seed: of the bootstrap intervals.
        progress: called with the number of images after each batch.

    Raises:
        DataError: no images, or an arm called "intact model".
        ContractError: NaN or inf in the residual stream, or in the output.

    Example:
        >>> from ttreg_interp.hooked import load
        >>> from ttreg_interp.interventions import TestTimeRegister, ZeroNeurons
        >>> arms = {"register": TestTimeRegister({3: [7]}), "zeroed": ZeroNeurons({3: [7]})}
        >>> found = measure_effects(load("timm:test_vit?random"), [torch.randn(4, 3, 160, 160)], arms)
        >>> found["zeroed"].n_images, len(found["register"].layers)
        (4, 6)
    """
    if _INTACT in arms:
        raise DataError(f"The name {_INTACT!r} is taken by the model as it is; choose another one.")
    every = frozenset(range(model.cfg.n_layers))
    runs = ArmRuns(model, {_INTACT: Empty(), **arms}, Observed(every, every))
    gathered = {name: _Gathered() for name in arms}
    n_images = 0
    for batch in batches:
        pixels = batch if isinstance(batch, Tensor) else batch.pixels
        names = [str(n_images + i) for i in range(len(pixels))]
        if not isinstance(batch, Tensor):
            names = [path.name for path in batch.paths]
        n_images += len(pixels)
        before: Trace | None = None
        for name, run in runs(pixels.to(model.cfg.device, model.cfg.dtype)):
            seen = _traced(model, run)
            if before is None:
                before = seen
            else:
                gathered[name].add(before, seen, names, n_examples)
        if progress is not None:
            progress(len(pixels))
    if not n_images:
        raise DataError("No images to measure on: the batches were empty.")
    return {name: _summary(model, arms[name], each, seed) for name, each in gathered.items()}


_INTACT = "intact model"
"""Runs first."""


def _traced(model: HookedViT, run: ArmRun) -> Trace:
    layers = range(model.cfg.n_layers)
    norms = torch.stack([run.norms[layer] for layer in layers])
    check_finite_layers(norms, model.cfg.model_name)
    attention = torch.stack([run.attention[layer] for layer in layers])
    return Trace(norms, attention, run.output, run.layout.of_length(norms.shape[-1]))


@dataclass
class _Gathered:
    """What one arm did, batch by batch."""

    columns: dict[str, list[Tensor]] = field(default_factory=dict)
    outputs: list[Tensor] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)

    def add(self, before: Trace, after: Trace, names: list[str], n_examples: int) -> None:
        for name, column in _columns(before, after).items():
            self.columns.setdefault(name, []).append(column.cpu())
        self.outputs.append(_output_change(before.output, after.output).cpu())
        self.examples += _examples(names[: n_examples - len(self.examples)], before, after)


def _columns(before: Trace, after: Trace) -> dict[str, Float[Tensor, "layer batch"]]:
    columns = {}
    for when, run in (("before", before), ("after", after)):
        norms = run.patch_norms
        median = norms.median(dim=-1).values
        columns[f"max_norm_{when}"] = norms.amax(dim=-1)
        columns[f"median_norm_{when}"] = median
        columns[f"max_over_median_{when}"] = norms.amax(dim=-1) / median
        patch_attention = run.attention[..., run.layout.patches].mean(dim=2)
        columns[f"max_attention_{when}"] = patch_attention.amax(dim=-1)
    columns["attention_on_register"] = after.register_attention.mean(dim=-1)
    return columns


def _output_change(before: Tensor, after: Tensor) -> Float[Tensor, "measure batch"]:
    before, after = before.flatten(1).double(), after.flatten(1).double()
    relative = (after - before).norm(dim=1) / before.norm(dim=1)
    same = (after.argmax(dim=1) == before.argmax(dim=1)).double()
    return torch.stack((relative, cosine_similarity(after, before), same))


def _examples(names: list[str], before: Trace, after: Trace) -> list[Example]:
    maps = [run.layout.grid(run.norms).cpu() for run in (before, after)]
    maps += [run.layout.grid(run.attention.mean(dim=2)).cpu() for run in (before, after)]
    return [Example(name, *(picture[:, i] for picture in maps)) for i, name in enumerate(names)]


def _summary(
    model: HookedViT,
    intervention: Intervention,
    gathered: _Gathered,
    seed: int,
) -> Effect:
    means = {
        name: torch.cat(parts, dim=1).double().mean(dim=1)
        for name, parts in gathered.columns.items()
    }
    outputs = torch.cat(gathered.outputs, dim=1)
    layers = tuple(
        LayerEffect(layer, **{name: float(mean[layer]) for name, mean in means.items()})
        for layer in range(model.cfg.n_layers)
    )
    relative, cosine, same = (
        mean_interval(values, seed) if len(values) > 1 else _point(values) for values in outputs
    )
    return Effect(
        intervention=intervention,
        n_images=outputs.shape[1],
        layers=layers,
        relative_change=relative,
        cosine=cosine,
        same_top1=same if model.parts.is_classifier else None,
        examples=tuple(gathered.examples),
    )


def _point(values: Tensor) -> Interval:
    """One image has a value, and no interval."""
    value = float(values[0])
    return Interval(value, value, value, level=0.95, method="one image: no interval", n=1)
