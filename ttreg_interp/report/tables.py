"""Tables and curves as a page shows them: cells of text, intervals also as bars on one axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ttreg_interp.metrics.intervals import Interval

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One value."""

    text: str
    """As it is read."""
    number: bool = False
    """Set to the right."""
    bar: tuple[float, float, float] | None = None
    """An interval: low end, estimate, high end, in percent of its column's axis."""


@dataclass(frozen=True)
class Table:
    """Rows under named columns."""

    title: str
    """What it is."""
    columns: tuple[str, ...]
    """Names of the columns."""
    rows: tuple[tuple[Cell, ...], ...]
    """One cell a column."""
    zeros: tuple[float | None, ...]
    """By column: where zero lies on the axis of its intervals, in percent; None if outside."""
    notes: tuple[str, ...] = ()
    """How its intervals were found."""
    folded: bool = False
    """Shown only when asked for."""


@dataclass(frozen=True)
class Chart:
    """Curves over one axis."""

    title: str
    """What it is."""
    x_label: str
    """Of the axis."""
    x: tuple[float, ...]
    """Places on the axis."""
    series: tuple[tuple[str, tuple[float | None, ...]], ...]
    """Name and values of each curve."""


def make_table(title: str, rows: Sequence[Row], folded: bool = False) -> Table:
    """A table with a column for every key, in the order in which keys first appear."""
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    by_column = [_column([row.get(name) for row in rows]) for name in columns]
    return Table(
        title=title_of(title),
        columns=tuple(title_of(name) for name in columns),
        rows=tuple(zip(*(cells for cells, _ in by_column), strict=True)),
        zeros=tuple(zero for _, zero in by_column),
        notes=_notes(rows),
        folded=folded,
    )


def _column(values: list[Any]) -> tuple[list[Cell], float | None]:
    """The cells of a column, and where zero lies on their axis."""
    intervals = [value for value in values if _is_interval(value)]
    if not intervals:
        return [_cell(value) for value in values], None
    low = min(min(one["low"], one["estimate"]) for one in intervals)
    high = max(max(one["high"], one["estimate"]) for one in intervals)
    margin = 0.08 * ((high - low) or abs(high) or 1.0)
    low, high = low - margin, high + margin
    zero = _percent(0.0, low, high) if low <= 0 <= high else None
    return [_cell(value, (low, high)) for value in values], zero


def _cell(value: Any, axis: tuple[float, float] | None = None) -> Cell:
    if axis is not None and _is_interval(value):
        interval = _interval(value)
        ends = interval.low, interval.estimate, interval.high
        low, middle, high = (_percent(end, *axis) for end in ends)
        return Cell(str(interval), True, (low, middle, high))
    if is_number(value):
        return Cell(_number(value), True)
    return Cell(_text(value))


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_number(value):
        return _number(value)
    if _is_interval(value):
        return str(_interval(value))
    if isinstance(value, Mapping):
        return ", ".join(f"{title_of(key)} {_text(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_text(item) for item in value)
    return str(value)


def _interval(value: Row) -> Interval:
    """From `Interval.to_dict()`; rows made by hand may leave out how it was found."""
    return Interval(
        estimate=float(value["estimate"]),
        low=float(value["low"]),
        high=float(value["high"]),
        level=float(value.get("level", 0.95)),
        method=str(value.get("method", "")),
        n=int(value.get("n", 0)),
    )


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    """How the intervals were found, each way once."""
    found = [_interval(value) for row in rows for value in row.values() if _is_interval(value)]
    said = (f"{one.level:.0%} intervals: {one.method}, n = {one.n}." for one in found if one.method)
    return tuple(dict.fromkeys(said))


def _is_interval(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        is_number(value.get(end)) for end in ("low", "estimate", "high")
    )


def is_number(value: Any) -> bool:
    """Whether it can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _percent(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 2)


def title_of(name: str) -> str:
    """A key as it is read."""
    return name.replace("_", " ")
