"""Tables of one row an image that need not fit into memory: rows are read as they are asked for.

A tensor is such a table too, so whoever asks for `table[places]` works on both. Probes do, and never
ask for more than a piece or a minibatch: their memory does not grow with the images.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

PIECE = 2**25
"""Bytes that are read at once, as float32."""


class Rows(ABC):
    """Rows that are read, or made, when they are asked for. Their values are finite."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of the whole table; rows first."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the rows."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the rows are when they have been read."""

    @abstractmethod
    def __getitem__(self, places: Int[Tensor, " row"]) -> Shaped[Tensor, "row ..."]:
        """Rows by their places, in the order of the places."""

    def __len__(self) -> int:
        return self.shape[0]


Table: TypeAlias = Tensor | Rows


@dataclass(frozen=True, eq=False)
class Chosen(Rows):
    """Some rows of a table."""

    table: Table
    """All rows."""
    places: Int[Tensor, " row"]
    """Those that were chosen."""

    @property
    def shape(self) -> tuple[int, ...]:
        """See Rows."""
        return (len(self.places), *self.table.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """See Rows."""
        return self.table.dtype

    @property
    def device(self) -> torch.device:
        """See Rows."""
        return self.table.device

    def __getitem__(self, places: Int[Tensor, " row"]) -> Shaped[Tensor, "row ..."]:
        """See Rows."""
        return self.table[self.places[places]]


@dataclass(frozen=True, eq=False)
class Mapped(Rows):
    """What a function makes of the rows of a table, some rows at a time."""

    table: Table
    """What enters."""
    function: Callable[[Tensor], Tensor]
    """From rows to as many rows; of each row alone."""

    @property
    def shape(self) -> tuple[int, ...]:
        """See Rows."""
        return (len(self.table), *self._one.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """See Rows."""
        return self._one.dtype

    @property
    def device(self) -> torch.device:
        """See Rows."""
        return self._one.device

    def __getitem__(self, places: Int[Tensor, " row"]) -> Shaped[Tensor, "row ..."]:
        """See Rows."""
        return self.function(self.table[places])

    @property
    def _one(self) -> Tensor:
        return self[torch.zeros(1, dtype=torch.long)]


def chosen(table: Table, places: Int[Tensor, " row"]) -> Table:
    """Some rows of a table: of a tensor a copy, of rows on disk a view.

    Example:
        >>> chosen(torch.tensor([[5], [6], [7]]), torch.tensor([2, 0])).tolist()
        [[7], [5]]
    """
    return table[places] if isinstance(table, Tensor) else Chosen(table, places)


def pieces(table: Table) -> Iterator[Int[Tensor, " row"]]:
    """Places of all rows in order, so many at a time as make a piece, one or more.

    Example:
        >>> [len(places) for places in pieces(torch.zeros(5, 2**23))]
        [1, 1, 1, 1, 1]
    """
    row_bytes = 4 * prod(table.shape[1:])
    yield from torch.arange(len(table)).split(max(1, PIECE // max(1, row_bytes)))


def at_hand(table: Table) -> Table:
    """A table that makes one piece as a tensor, so that it is read once; a larger one as it is."""
    places = list(pieces(table))
    return table[places[0]] if len(places) == 1 else table


def moments(
    table: Table,
) -> tuple[Float[Tensor, " channel"], Float[Tensor, " channel"]]:
    """Standard deviation (1 where it is 0) and mean of the last axis over all others, in float64.

    Pieces are joined by Chan's update of mean and sum of squares.

    Example:
        >>> moments(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        (tensor([1., 1.], dtype=torch.float64), tensor([2., 5.], dtype=torch.float64))
    """
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for places in pieces(table):
        flat = table[places].flatten(end_dim=-2).double()
        variance, centre = torch.var_mean(flat, dim=0, correction=0)
        if not count:
            count, mean, squares = len(flat), centre, variance * len(flat)
            continue
        total, shift = count + len(flat), centre - mean
        squares = squares + variance * len(flat) + shift.square() * count * len(flat) / total
        mean, count = mean + shift * len(flat) / total, total
    spread = (squares / count).sqrt()
    return torch.where(spread > 0, spread, 1.0), mean
