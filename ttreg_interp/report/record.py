"""Recording a run: the maps of a few images under every arm, written to a run directory."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import DataError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.hooked.load import weights_hash
from ttreg_interp.interventions import Intervention, NeuronSet
from ttreg_interp.provenance import versions
from ttreg_interp.report.observe import Observer, Plan
from ttreg_interp.report.run import SCHEMA, Run
from ttreg_interp.report.thumbnails import thumbnails


@runtime_checkable
class ImageSource(Protocol):
    """What `tt.images(...)` returns: images that come in batches with their paths."""

    def batches(self, preprocess: Any, batch_size: int) -> Iterable[Any]:
        """Batches with `pixels` [batch, channel, height, width] and `paths`."""
        ...


def record_run(
    model: HookedViT,
    images: ImageSource | Float[Tensor, "batch channel height width"],
    arms: Mapping[str, Intervention],
    out: Path | str,
    *,
    neurons: Any = None,
    n_images: int = 12,
    batch_size: int = 8,
    summary: Mapping[str, Any] | None = None,
) -> Path:
    """Run a few images under every arm and keep what a report shows.

    Args:
        model: any HookedViT.
        images: an image source, or preprocessed pixels.
        arms: interventions by name; the first is what the others are compared with.
        out: the run directory; made if missing, its files replaced.
        neurons: neurons to map, in any form that `NeuronSet.of` takes.
        n_images: how many images, the first ones.
        batch_size: images in one forward pass.
        summary: further tables for the report, by section: `effect`, `causal`, `neurons`,
            `calibration` (see the how-to "Read the report").

    Returns:
        `out`, with `run.json` and `maps.safetensors`.

    Raises:
        DataError: no arms, or no images.
        InterventionError: an arm or the neurons do not fit the model.
        ContractError: NaN or inf in the residual stream.
    """
    if not arms:
        raise DataError('No arms to record. Give at least one, e.g. {"intact": Empty()}.')
    chosen = NeuronSet.of(neurons if neurons is not None else {})
    chosen.check(model.cfg.n_layers, model.cfg.d_mlp, model.cfg.model_name)
    observers: dict[str, Observer] = {}
    names: list[str] = []
    pictures: list[Tensor] = []
    for batch_names, pixels in _batches(model, images, n_images, batch_size):
        for arm, intervention in arms.items():
            if arm not in observers:
                plan = Plan.within(model, pixels.shape, intervention, n_images * len(arms))
                observers[arm] = Observer(model, plan, chosen)
            with model.intervened(intervention):
                observers[arm].run(pixels)
        names += batch_names
        pictures.append(thumbnails(pixels, model.preprocess))
    if not names:
        raise DataError("No images to record: the source was empty.")
    maps = {"thumbnails": torch.cat(pictures)}
    for i, observer in enumerate(observers.values()):
        maps |= {f"{i}.{name}": map_ for name, map_ in observer.maps().items()}
    info = _info(model, arms, observers, names, chosen) | {"summary": dict(summary or {})}
    return Run(info, maps).save(out)


def _batches(
    model: HookedViT, images: ImageSource | Tensor, n_images: int, batch_size: int
) -> Iterator[tuple[list[str], Tensor]]:
    """Names and pixels of the first `n_images` images, on the model's device."""
    left = n_images
    for names, pixels in _named(model, images, batch_size):
        yield names[:left], pixels[:left].to(model.cfg.device, model.cfg.dtype)
        left -= len(names)
        if left <= 0:
            return


def _named(
    model: HookedViT, images: ImageSource | Tensor, batch_size: int
) -> Iterator[tuple[list[str], Tensor]]:
    if isinstance(images, Tensor):
        numbers = count()
        for pixels in images.split(batch_size):
            yield [f"image {next(numbers)}" for _ in pixels], pixels
        return
    for batch in images.batches(model.preprocess, batch_size):
        yield [Path(path).name for path in batch.paths], batch.pixels


def _info(
    model: HookedViT,
    arms: Mapping[str, Intervention],
    observers: Mapping[str, Observer],
    names: list[str],
    neurons: NeuronSet,
) -> dict[str, Any]:
    cfg = model.cfg
    height, width = model.image_size
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "model": {
            "name": cfg.model_name,
            "family": model.parts.family,
            "weights": weights_hash(model.source),
            "n_layers": cfg.n_layers,
            "n_heads": cfg.n_heads,
            "d_model": cfg.d_model,
            "image_size": [height, width],
        },
        "arms": [
            {
                "name": name,
                "description": arms[name].describe(),
                "intervention": arms[name].to_dict(),
                **observer.plan.to_dict(),
            }
            for name, observer in observers.items()
        ],
        "images": [{"name": name} for name in names],
        "neurons": [list(pair) for pair in neurons],
    }
