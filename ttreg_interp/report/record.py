"""Recording a run: the maps of a few images under every arm, written to a run directory."""

import math
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import DataError, LayoutError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.hooked.load import weights_hash
from ttreg_interp.interventions import Intervention, NeuronSet
from ttreg_interp.provenance import versions
from ttreg_interp.report.observe import Observer
from ttreg_interp.report.plan import plan_arms
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
        summary: further sections of the report, as plain values: `effect`, `neurons`,
            `calibration`, `causal`, or any table (see the how-to "Read the report").

    Returns:
        `out`, with `run.json` and `maps.safetensors`.

    Raises:
        DataError: no arms, or no images.
        InterventionError: an arm or the neurons do not fit the model.
        ContractError: NaN or inf in the residual stream.
        LayoutError: an arm deletes tokens, or images differ in size.
    """
    if isinstance(images, Tensor):
        n_images = min(n_images, len(images))
    if not arms or n_images < 1:
        raise DataError(
            f"Nothing to record: {len(arms)} arms, n_images={n_images}. Give at least one of each, "
            'e.g. arms={"intact": Empty()}.'
        )
    chosen = NeuronSet.of(neurons if neurons is not None else {})
    chosen.check(model.cfg.n_layers, model.cfg.d_mlp, model.cfg.model_name)
    observers: dict[str, Observer] = {}
    names: list[str] = []
    pictures: list[Tensor] = []
    for batch_names, pixels in _batches(model, images, n_images, batch_size):
        if not observers:
            plans = plan_arms(model, pixels.shape, arms, n_images)
            observers = {arm: Observer(model, plan, chosen) for arm, plan in plans.items()}
        for arm, intervention in arms.items():
            with model.intervened(intervention):
                observers[arm].run(pixels)
        names += batch_names
        # Who prepared a tensor is not known, so its own range stands for black and white.
        prepared = None if isinstance(images, Tensor) else model.preprocess
        pictures.append(thumbnails(pixels, prepared))
    if not names:
        raise DataError("No images to record: the source was empty.")
    info = _info(model, arms, observers, names) | {"neurons": [list(pair) for pair in chosen]}
    maps = {"thumbnails": torch.cat(pictures)} | _maps(observers, info)
    return Run(info | {"summary": _plain(summary or {})}, maps).save(out)


def _batches(
    model: HookedViT, images: ImageSource | Tensor, n_images: int, batch_size: int
) -> Iterator[tuple[list[str], Tensor]]:
    """Names and pixels of the first `n_images` images, on the model's device.

    Raises:
        LayoutError: images differ in size.
    """
    left, size = n_images, None
    for names, pixels in _named(model, images, batch_size):
        size = size or pixels.shape[1:]
        if pixels.shape[1:] != size:
            raise LayoutError(
                f"Images of one run have one size; found {list(size)} and "
                f"{list(pixels.shape[1:])} [channel, height, width]. Let the preprocessing resize "
                "or crop, or record a run for each size."
            )
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
        yield [_printable(Path(path).name) for path in batch.paths], batch.pixels


def _printable(name: str) -> str:
    """A file name may hold bytes that are no text."""
    return name.encode("utf-8", "replace").decode()


def _info(
    model: HookedViT,
    arms: Mapping[str, Intervention],
    observers: Mapping[str, Observer],
    names: list[str],
) -> dict[str, Any]:
    cfg = model.cfg
    code = next(iter(observers.values())).plan.code
    return {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "model": {
            "name": cfg.model_name,
            "family": model.parts.family,
            "weights_hash": weights_hash(model.source),
            "n_layers": cfg.n_layers,
            "n_heads": cfg.n_heads,
            "d_model": cfg.d_model,
            "d_mlp": cfg.d_mlp,
            "dtype": str(cfg.dtype).removeprefix("torch."),
        },
        "attention": {"n_keys": code.n_keys, "relative_error": code.relative_error},
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
    }


def _maps(observers: Mapping[str, Observer], info: dict[str, Any]) -> dict[str, Tensor]:
    """All maps by name; notes in `info` whether attention leaves the tokens under some arm.

    The first key, attention to elsewhere, stays only if it holds something.
    """
    by_arm = [observer.maps() for observer in observers.values()]
    kinds = next(iter(observers.values())).plan.rows
    elsewhere = any(bool(maps[kind][..., 0].any()) for maps in by_arm for kind in kinds)
    info["attention"]["elsewhere"] = elsewhere
    first_key = 0 if elsewhere else 1
    return {
        f"{i}.{kind}": map_[..., first_key:] if kind in kinds else map_
        for i, maps in enumerate(by_arm)
        for kind, map_ in maps.items()
    }


def _plain(value: Any) -> Any:
    """`value` as JSON has it; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
