"""Many arms on the same images: a table of what each does, with paired intervals."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import DataError
from ttreg_interp.hooked import HookedViT, weights_hash
from ttreg_interp.interventions import Empty, Intervention, NeuronSet, ZeroNeurons
from ttreg_interp.metrics.arm_metrics import (
    KL,
    ArmMetric,
    Cosine,
    Labels,
    MaxOverMedian,
    RelativeChange,
    SameTop1,
    Top1,
)
from ttreg_interp.metrics.arm_runs import ArmRun, ArmRuns, Observed
from ttreg_interp.metrics.comparison import INTACT, Arms, Comparison, Row
from ttreg_interp.metrics.intervals import controls_interval, mean_interval, paired_difference

Pixels = Float[Tensor, "batch channel height width"]


@runtime_checkable
class Batch(Protocol):
    """Images that were read and preprocessed."""

    @property
    def pixels(self) -> Pixels:
        """The images."""
        ...

    @property
    def indices(self) -> Sequence[int]:
        """The place of each image among all that were given."""
        ...


@runtime_checkable
class ImageSource(Protocol):
    """Images that are read as they are needed, such as `ttreg_interp.images(folder)`."""

    def batches(self, preprocess: Any, batch_size: int) -> Iterable[Batch]:
        """Preprocessed batches."""
        ...

    def __len__(self) -> int:
        """Images in all, also those that cannot be read."""
        ...


Images: TypeAlias = ImageSource | Tensor | Iterable[Tensor | Batch]
"""Image files, pixels of all images, or batches of pixels."""


def compare(
    model: HookedViT,
    images: Images,
    arms: Arms,
    metrics: Sequence[ArmMetric] | None = None,
    batch_size: int = 16,
    labels: Sequence[int] | Tensor | None = None,
    seed: int = 0,
) -> Comparison:
    """Run arms on the same images and say what each does, against the intact model.

    Images stream: memory holds one batch. Arms share the blocks before they part, the intact one's
    included; results have the bits of arms that run alone.

    Args:
        model: any HookedViT.
        images: `ttreg_interp.images(...)`, pixels [image, channel, height, width] of all images, or
            batches of pixels.
        arms: interventions by name; a mapping of several under one name counts as draws of a random
            control (`random_controls`) and gets one row, with the spread over draws.
        metrics: what to measure. None: relative change and cosine of the output and max/median norm
            of patches in the last block; for a classifier also KL and top-1 agreement, with labels
            top-1.
        batch_size: images of one forward pass, unless the images are batches already.
        labels: class of every image that was given, also of those that cannot be read.
        seed: of the bootstrap.

    Returns:
        A Comparison; print it for the table.

    Raises:
        DataError: no images, fewer than two, or labels that are missing or too many.
        InterventionError: an arm does not fit the model.
        ContractError: NaN or inf in the output of an arm.

    Example:
        >>> from ttreg_interp.hooked import load
        >>> from ttreg_interp.interventions import TestTimeRegister
        >>> model = load("timm:test_vit?random")
        >>> arms = {"register": TestTimeRegister({3: [7]}), "zero": ZeroNeurons({3: [7]})}
        >>> table = compare(model, torch.randn(4, 3, 160, 160), arms)
        >>> table["intact", "relative change"].value.estimate
        0.0
    """
    if INTACT in arms:
        raise DataError(
            f"The name {INTACT!r} is taken by the model as it is; name the arm otherwise."
        )
    arms = {INTACT: Empty(), **arms}
    chosen = _default_metrics(model, labels is not None) if metrics is None else metrics
    chosen = tuple(metric.on(model.cfg.n_layers) for metric in chosen)
    runs = ArmRuns(model, dict(_flattened(arms)), _observed(chosen))
    values: dict[str, dict[str, list[Tensor]]] = {}
    for pixels, classes in _batches(model, images, batch_size, labels):
        for name, numbers in _measured(runs, chosen, pixels, classes):
            for metric, column in numbers.items():
                values.setdefault(name, {}).setdefault(metric, []).append(column)
    per_image = {
        name: {metric: torch.cat(parts) for metric, parts in columns.items()}
        for name, columns in values.items()
    }
    if not per_image:
        raise DataError("Found no image to compare arms on; give at least two.")
    return Comparison(
        model=model.cfg.model_name,
        weights_hash=weights_hash(model.source),
        arms=arms,
        metrics=chosen,
        per_image=per_image,
        rows=tuple(_rows(arms, chosen, per_image, seed)),
        n_images=len(per_image[INTACT][chosen[0].name]),
        batch_size=batch_size,
        seed=seed,
        blocks_run=runs.n_blocks_run / (len(runs.steps) * model.cfg.n_layers),
    )


def random_controls(
    neurons: Any,
    d_mlp: int,
    n: int = 20,
    seed: int = 0,
    make: Callable[[NeuronSet], Intervention] = ZeroNeurons,
) -> dict[str, Intervention]:
    """Draws of a matched random control: as many random neurons in every layer, none of the given.

    Args:
        neurons: a NeuronSet, a mapping of layers to neurons, or RegisterNeurons.
        d_mlp: neurons of a layer, `model.cfg.d_mlp`.
        n: how many draws.
        seed: of the draws.
        make: what to do with the drawn neurons, e.g. `TestTimeRegister`.

    Returns:
        Interventions by 'draw 0', 'draw 1', ...; one arm of `compare`.

    Raises:
        InterventionError: a layer has too few other neurons.
        DataError: fewer than two draws, which show no spread.

    Example:
        >>> random_controls({3: [7]}, d_mlp=16, n=2)["draw 1"]
        <ZeroNeurons: zero in 1 neuron; layer 3: ...>
    """
    if n < 2:
        raise DataError(f"n={n}: a control of fewer than 2 draws shows no spread. Usual are 20.")
    seeds = torch.randint(2**31, (n,), generator=torch.Generator().manual_seed(seed))
    chosen = NeuronSet.of(neurons)
    return {
        f"draw {i}": make(chosen.matched_random(int(one), d_mlp)) for i, one in enumerate(seeds)
    }


def _default_metrics(model: HookedViT, labelled: bool) -> Sequence[ArmMetric]:
    always = (RelativeChange(), Cosine(), MaxOverMedian())
    if model.parts.is_classifier:
        return (*always, KL(), SameTop1(), *([Top1()] if labelled else []))
    if labelled:
        raise DataError(
            f"{model.cfg.model_name} returns no logits, so labels say nothing about its output. Give "
            "what makes logits of it: metrics=[Top1(logits=...)], e.g. a zero-shot classifier."
        )
    return always


def _observed(metrics: Sequence[ArmMetric]) -> Observed:
    return Observed(
        norms=frozenset(layer for metric in metrics for layer in metric.norm_layers),
        attention=frozenset(layer for metric in metrics for layer in metric.attention_layers),
    )


def _flattened(arms: Arms) -> Iterator[tuple[str, Intervention]]:
    """Every arm to run; a draw of a control is called 'control: draw'."""
    for name, arm in arms.items():
        if isinstance(arm, Intervention):
            yield name, arm
        else:
            yield from ((f"{name}: {draw}", one) for draw, one in arm.items())


def _measured(
    runs: ArmRuns, metrics: Sequence[ArmMetric], pixels: Pixels, labels: Labels | None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    intact: ArmRun | None = None
    for name, run in runs(pixels):
        intact = intact or run  # the intact arm runs first
        yield (
            name,
            {m.name: m.measure(run, intact, labels).double().cpu() for m in metrics},
        )


def _batches(
    model: HookedViT, images: Images, batch_size: int, labels: Sequence[int] | Tensor | None
) -> Iterator[tuple[Pixels, Labels | None]]:
    """Pixels where and as the model takes them, and their classes."""
    classes = None if labels is None else torch.as_tensor(labels)
    n_given = len(images) if isinstance(images, Tensor | ImageSource) else None
    if classes is not None and n_given not in (None, len(classes)):
        raise DataError(f"{len(classes)} labels for {n_given} images. Give one for every image.")
    first = 0
    for batch in _split(model, images, batch_size):
        pixels = batch if isinstance(batch, Tensor) else batch.pixels
        own = range(first, first + len(pixels)) if isinstance(batch, Tensor) else batch.indices
        first = max(own) + 1
        pixels = pixels.to(model.cfg.device, model.cfg.dtype)
        if classes is None:
            yield pixels, None
        elif first > len(classes):
            raise DataError(f"{len(classes)} labels, and more images. Give one for every image.")
        else:
            yield pixels, classes[list(own)].to(pixels.device)


def _split(model: HookedViT, images: Images, batch_size: int) -> Iterable[Tensor | Batch]:
    if isinstance(images, Tensor):
        return images.split(batch_size)
    if not isinstance(images, ImageSource):
        return images
    if model.preprocess is None:
        raise DataError(
            f"{model.cfg.model_name} comes without preprocessing. Set model.preprocess, or give pixels."
        )
    return images.batches(model.preprocess, batch_size)


def _rows(
    arms: Arms,
    metrics: Sequence[ArmMetric],
    per_image: Mapping[str, Mapping[str, Tensor]],
    seed: int,
) -> Iterator[Row]:
    for name, arm in arms.items():
        for metric in metrics:
            intact = per_image[INTACT][metric.name]
            compared = name != INTACT and not metric.against_intact
            if isinstance(arm, Intervention):
                values = per_image[name][metric.name]
                value = mean_interval(values, seed)
                difference = paired_difference(values, intact, seed) if compared else None
            else:
                means = [per_image[f"{name}: {draw}"][metric.name].mean() for draw in arm]
                draws = torch.stack(means)
                value = controls_interval(draws)
                difference = controls_interval(draws - intact.mean()) if compared else None
            yield Row(name, metric.name, value, difference)
