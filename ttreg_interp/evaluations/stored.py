"""One column of the records, read from its chunks row by row, so that it need not fit into memory."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from ttreg_interp.errors import ArtifactError
from ttreg_interp.metrics.rows import Rows

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The names that safetensors writes."""


@dataclass(frozen=True)
class Place:
    """Where one chunk keeps its rows of a column."""

    file: Path
    """A safetensors file."""
    offset: int
    """Of the first row, in bytes."""
    shape: tuple[int, ...]
    """Rows first."""
    dtype: torch.dtype
    """Of the values."""


def find(file: Path, key: str) -> Place:
    """Where a chunk keeps a tensor.

    safetensors' own reader opens a file in 0.2 ms, a minibatch of 256 rows may need as many files;
    the place is looked up once and the bytes are read directly.

    Raises:
        ArtifactError: no such tensor, or a file that is shorter than it says.
    """
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        entries: dict[str, Any] = json.loads(content.read(length))
    if key not in entries:
        raise ArtifactError(f"{file} has no record {key!r}. Remove it; it is made again.")
    entry = entries[key]
    begin, end = (8 + length + place for place in entry["data_offsets"])
    if file.stat().st_size < end:
        raise ArtifactError(f"{file} is truncated. Remove it; it is made again.")
    return Place(file, begin, tuple(entry["shape"]), _DTYPES[entry["dtype"]])


class Stored(Rows):
    """Rows on disk, in the dtype in which they were recorded."""

    def __init__(self, places: Sequence[Place], device: torch.device | str = "cpu"):
        first = places[0]
        if odd := [p for p in places if (p.shape[1:], p.dtype) != (first.shape[1:], first.dtype)]:
            raise ArtifactError(
                f"{odd[0].file} holds rows of {odd[0].shape[1:]}, {odd[0].dtype}; {first.file} of "
                f"{first.shape[1:]}, {first.dtype}. Chunks of one run are alike: run it again."
            )
        self._chunks = tuple(places)
        self._ends = torch.tensor([p.shape[0] for p in places]).cumsum(0)
        self._row, self._dtype = first.shape[1:], first.dtype
        self._device = torch.device(device)

    @property
    def shape(self) -> tuple[int, ...]:
        """See Rows."""
        return (int(self._ends[-1]), *self._row)

    @property
    def dtype(self) -> torch.dtype:
        """See Rows."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """See Rows."""
        return self._device

    def __getitem__(self, places: Int[Tensor, " row"]) -> Shaped[Tensor, "row ..."]:
        """See Rows; rows that lie side by side are read together."""
        chunk = torch.searchsorted(self._ends, places, right=True)
        within = places - torch.cat([self._ends.new_zeros(1), self._ends])[chunk]
        apart = (chunk.diff() != 0) | (within.diff() != 1)
        starts = [0, *(apart.nonzero()[:, 0] + 1).tolist(), len(places)]
        parts = [
            self._read(int(chunk[start]), int(within[start]), end - start)
            for start, end in zip(starts, starts[1:], strict=False)
        ]
        return torch.cat(parts).to(self._device)

    def _read(self, chunk: int, first: int, count: int) -> Tensor:
        place = self._chunks[chunk]
        row_bytes = place.dtype.itemsize * prod(self._row)
        try:
            raw = np.fromfile(
                place.file, np.uint8, count * row_bytes, offset=place.offset + first * row_bytes
            )
        except OSError as error:
            raise ArtifactError(f"{place.file} cannot be read again: {error}.") from error
        if raw.nbytes != count * row_bytes:
            raise ArtifactError(f"{place.file} became shorter while it was read. Run again.")
        return torch.from_numpy(raw).view(place.dtype).view(count, *self._row)
