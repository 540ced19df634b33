"""The caller's tables as a page shows them: cells of text, intervals also as bars on one axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """One table for each section that holds rows, in the caller's order."""
    made = []
    for name, value in _sections(summary).items():
        rows = _rows(value)
        if rows:
            made.append(make_table(name, rows))
    return made


def make_table(title: str, rows: Sequence[Row]) -> Table:
    """A table with a column for every key, in the order in which keys first appear."""
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    by_column = [_column([row.get(name) for row in rows]) for name in columns]
    return Table(
        title=_title(title),
        columns=tuple(_title(name) for name in columns),
        rows=tuple(zip(*(cells for cells, _ in by_column), strict=True)),
        zeros=tuple(zero for _, zero in by_column),
    )


def calibration(summary: Mapping[str, Any]) -> list[tuple[Chart, Table]]:
    """The calibration curve and its table, if the caller gave rows with two or more numbers."""
    rows = _calibration_rows(summary)
    numeric = [name for name in (rows[0] if rows else ()) if _is_number(rows[0][name])]
    if len(rows) < 2 or len(numeric) < 2:
        return []
    x, *names = numeric
    rows = [row for row in rows if _is_number(row.get(x))]
    series = tuple((_title(name), tuple(_value(row.get(name)) for row in rows)) for name in names)
    chart = Chart("Calibration", _title(x), tuple(float(row[x]) for row in rows), series)
    return [(chart, make_table("calibration", rows))]


def _value(value: Any) -> float | None:
    return float(value) if _is_number(value) else None


def _calibration_rows(summary: Mapping[str, Any]) -> list[Row]:
    """From `calibration`, or from the evidence inside `neurons`."""
    found = summary.get("calibration")
    if found is None and isinstance(summary.get("neurons"), Mapping):
        found = summary["neurons"].get("evidence", {}).get("curve")
    return _rows(found)


def _sections(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Sections by name: an effect becomes its output's intervals, neurons their ranking."""
    sections = {name: value for name, value in summary.items() if name != "calibration"}
    effect = sections.pop("effect", None)
    if isinstance(effect, Mapping):
        sections = {"effect": _effect_rows(effect)} | sections
    neurons = sections.get("neurons")
    if isinstance(neurons, Mapping):
        sections["neurons"] = _ranking_rows(neurons)
    return sections


def _effect_rows(effect: Mapping[str, Any]) -> list[Row]:
    """Output changes of one effect, or of several by arm."""
    by_arm = {"": effect} if "output" in effect else effect
    rows = []
    for arm, one in by_arm.items():
        name = {"arm": arm} if arm else {}
        output = {key: value for key, value in one["output"].items() if value is not None}
        rows.append(name | {"images": one["n_images"]} | output)
    return rows


def _ranking_rows(neurons: Mapping[str, Any]) -> list[Row]:
    chosen = {
        (int(layer), neuron)
        for layer, listed in neurons.get("layer_to_neurons", {}).items()
        for neuron in listed
    }
    return [
        {"layer": layer, "neuron": neuron, "score": score}
        for layer, neuron, score in neurons.get("ranking", ())
        if (layer, neuron) in chosen
    ]


def _rows(value: Any) -> list[Row]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [row for row in value if isinstance(row, Mapping)]
    return []


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
        low, middle, high = value["low"], value["estimate"], value["high"]
        text = f"{_number(middle)} [{_number(low)}, {_number(high)}]"
        bar = (_percent(low, *axis), _percent(middle, *axis), _percent(high, *axis))
        return Cell(text, True, bar)
    if _is_number(value):
        return Cell(_number(value), True)
    return Cell(_text(value))


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if _is_number(value):
        return _number(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{_title(key)} {_text(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_text(item) for item in value)
    return str(value)


def _is_interval(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _is_number(value.get(end)) for end in ("low", "estimate", "high")
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _percent(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 2)


def _title(name: str) -> str:
    return name.replace("_", " ")
