"""Running an evaluation: arms over images into records, records into a table.

The images stream: memory holds one batch. A run that was killed goes on at its next chunk; under
torchrun each process takes every n-th chunk.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ttreg_interp.data.annotated import Annotated
from ttreg_interp.discovery.distributed import current_shard
from ttreg_interp.errors import ContractError, DataError
from ttreg_interp.evaluations.arms import Arms, Run, runs_of
from ttreg_interp.evaluations.base import Evaluation, Kept, Prepared
from ttreg_interp.evaluations.records import Chunk, Records, claim, file_of, header, write
from ttreg_interp.evaluations.result import Result, scored
from ttreg_interp.hooked import HookedViT

logger = logging.getLogger("ttreg_interp")

CHUNK = 32
"""Images of one file of records: what a kill costs at most."""
Data = Annotated[Any] | Mapping[str, Annotated[Any]]
"""One set of images, or one for each split ('train', 'test')."""


def evaluate(
    evaluation: Evaluation,
    model: HookedViT,
    data: Data,
    arms: Arms,
    folder: Path | str,
    batch_size: int = 16,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Result:
    """Run every arm on the same images and say what each scores, against the intact model.

    Args:
        evaluation: the protocol, e.g. `Classification()`.
        model: any HookedViT.
        data: annotated images of `open_data`; by split where the protocol trains something.
        arms: by name, as `standard_arms` makes them; the intact model is always there.
        folder: for the records; a run that was killed goes on there.
        batch_size: images of one forward pass, where they have one size.
        seed: of the bootstrap.
        progress: told how many images each step did, also those found done.

    Returns:
        The table with paired intervals; `to_dict`, `to_markdown`, `to_latex`.

    Raises:
        DataError: data that does not fit the protocol, or of which no image can be read.
        ArtifactError: the folder belongs to another run.
        InterventionError: an arm does not fit the model.
        ContractError: NaN or inf in what is kept.

    Example:
        Under `torchrun --nproc-per-node 4`, wrap it in `discovery.distributed.torchrun()`: every
        process measures its share, and all return the same result.
    """
    sets = {"test": data} if isinstance(data, Annotated) else dict(data)
    runs = runs_of(model, arms)
    evaluation.check(runs, sets)
    folder = Path(folder)
    manifest = _manifest(evaluation, sets, runs)
    claim(folder, manifest)
    records = {split: Records(folder, split, _chunks(split, len(s))) for split, s in sets.items()}
    measured = _Measured(evaluation, runs, sets, batch_size)
    for one in records.values():
        for chunk in one.chunks:
            if current_shard().takes(chunk.number):
                measured.chunk(chunk, file_of(folder, chunk))
                if progress:
                    progress(len(chunk.images))
    if current_shard().of > 1:
        dist.barrier()
    return scored(evaluation, sets, runs, records, manifest, seed)


def _chunks(split: str, n_images: int) -> tuple[Chunk, ...]:
    starts = range(0, n_images, CHUNK)
    return tuple(
        Chunk(split, number, range(start, min(start + CHUNK, n_images)))
        for number, start in enumerate(starts)
    )


def _manifest(
    evaluation: Evaluation, data: Mapping[str, Annotated[Any]], runs: tuple[Run, ...]
) -> dict[str, Any]:
    """What must be equal for records to be used again."""
    return {
        "evaluation": evaluation.to_dict(),
        "data": {
            split: {"source": images.source, "n_images": len(images), "digest": images.digest()}
            for split, images in data.items()
        },
        "arms": {run.name: run.to_dict() for run in runs},
        "chunk": CHUNK,
    }


class _Measured:
    """Measures chunks; keeps what is made once for each model."""

    def __init__(
        self,
        evaluation: Evaluation,
        runs: tuple[Run, ...],
        data: Mapping[str, Annotated[Any]],
        batch_size: int,
    ):
        self.evaluation = evaluation
        self.runs = runs
        self.data = data
        self.batch_size = batch_size
        self.contexts: dict[int, Any] = {}

    @torch.no_grad()
    def chunk(self, chunk: Chunk, file: Path) -> None:
        """Make the file, unless it is there."""
        if file.is_file():
            header(file)
            return
        read, faults = self._read(chunk)
        kept: dict[str, list[Tensor]] = {}
        for model in {id(run.model): run.model for run in self.runs}.values():
            for batch in self._batches(model, read):
                for run in self.runs:
                    if run.model is model:
                        _add(kept, run, self._measure(run, batch))
        whole = {name: torch.cat(parts) for name, parts in kept.items()}
        write(file, whole, [place for place, _, _ in read], faults)

    def _read(self, chunk: Chunk) -> tuple[list[tuple[int, Any, Any]], list[str]]:
        read, faults = [], []
        for place in chunk.images:
            item = self.data[chunk.split].items[place]
            try:
                read.append((place, *item.read()))
            except DataError as error:
                faults.append(f"{item.name}: {error}")
                logger.warning("left out: %s", faults[-1])
        return read, faults

    def _batches(
        self, model: HookedViT, read: list[tuple[int, Any, Any]]
    ) -> Iterator[list[Prepared]]:
        """Images in order; neighbours of one size go together."""
        prepared = [self.evaluation.prepare(model, image, target) for _, image, target in read]
        for _, alike in groupby(prepared, key=lambda one: one.pixels.shape):
            group = list(alike)
            starts = range(0, len(group), self.batch_size)
            yield from (group[start : start + self.batch_size] for start in starts)

    def _measure(self, run: Run, batch: list[Prepared]) -> Kept:
        cfg = run.model.cfg
        pixels = torch.stack([one.pixels for one in batch]).to(cfg.device, cfg.dtype)
        targets = [one.target for one in batch]
        return self.evaluation.measure(run, pixels, targets, self._context(run.model))

    def _context(self, model: HookedViT) -> Any:
        if id(model) not in self.contexts:
            self.contexts[id(model)] = self.evaluation.context(model, self.data)
        return self.contexts[id(model)]


def _add(kept: dict[str, list[Tensor]], run: Run, columns: Kept) -> None:
    for name, column in columns.items():
        if column.is_floating_point() and not torch.isfinite(column).all():
            raise ContractError(
                f"Arm {run.name!r} ({run.deed}) on {run.model.cfg.model_name}: NaN or inf in "
                f"{name!r}. `trace(model, pixels)` inside `model.intervened(...)` finds the layer."
            )
        kept.setdefault(f"{run.name}/{name}", []).append(column.cpu())
