"""What the caller gives a report beside the maps: effects, neurons, a calibration curve, tables.

A section is known by its value, not by its name:

| value | shown as |
|---|---|
| rows: a list of mappings | a table; intervals (`estimate`, `low`, `high`) with bars |
| `Effect.to_dict()` | a table of output changes, and one layer by layer, folded |
| effects by arm | one table of output changes |
| `Comparison.to_dict()` | the causal table: a row an arm, a column a metric |
| `RegisterNeurons.to_dict()` | the neurons with their scores, and the calibration curve |
| anything else | in the JSON at the end of the page |

The summary itself may be an effect with other sections beside it. `calibration` is the one name
that means something: rows that are drawn as curves over their first number.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ttreg_interp.report.tables import Chart, Row, Table, is_number, make_table, title_of

_EFFECT = ("intervention", "n_images", "layers", "output")
"""Keys of `Effect.to_dict()`."""


def tables(summary: Mapping[str, Any]) -> list[Table]:
    """The tables of all sections, in the caller's order."""
    return [table for name, value in _sections(summary).items() for table in _tables(name, value)]


def calibration(summary: Mapping[str, Any]) -> tuple[list[Chart], Table] | None:
    """The calibration curves and their table, if there are rows with two or more numbers.

    Each number has a chart of its own: shares of outliers and drifts do not fit one axis.
    """
    rows = _calibration_rows(summary)
    numeric = [name for name in (rows[0] if rows else ()) if is_number(rows[0][name])]
    if len(rows) < 2 or len(numeric) < 2:
        return None
    x, *names = numeric
    rows = [row for row in rows if is_number(row.get(x))]
    places = tuple(float(row[x]) for row in rows)
    charts = [
        Chart(
            title_of(name).capitalize(),
            "neurons" if x == "k" else title_of(x),
            places,
            ((title_of(name), tuple(_value(row.get(name)) for row in rows)),),
        )
        for name in names
    ]
    return charts, make_table("calibration", rows)


def _sections(summary: Mapping[str, Any]) -> dict[str, Any]:
    sections = {name: value for name, value in summary.items() if name != "calibration"}
    if _is_effect(summary):
        effect = {key: sections.pop(key) for key in _EFFECT if key in sections}
        sections = {"effect": effect} | sections
    return sections


def _tables(name: str, value: Any) -> list[Table]:
    if _is_effect(value):
        layers = make_table(f"{name}, layer by layer", _rows(value.get("layers")), folded=True)
        return [make_table(name, [_output_row(value)]), *([layers] if layers.rows else [])]
    if isinstance(value, Mapping) and value and all(map(_is_effect, value.values())):
        return [make_table(name, [{"arm": arm} | _output_row(one) for arm, one in value.items()])]
    if _is_comparison(value):
        return [make_table(name, _comparison_rows(value))]
    if _is_artefact(value):
        name, rows = f"{name}: scores", _ranking_rows(value)
    else:
        rows = _rows(value)
    return [make_table(name, rows)] if rows else []


def _is_effect(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("output"), Mapping)


def _is_artefact(value: Any) -> bool:
    return isinstance(value, Mapping) and "ranking" in value


def _is_comparison(value: Any) -> bool:
    rows = _rows(value.get("rows")) if isinstance(value, Mapping) else []
    return bool(rows) and all({"arm", "metric", "value"} <= row.keys() for row in rows)


def _comparison_rows(comparison: Mapping[str, Any]) -> list[Row]:
    """A row an arm; a column a metric, and its difference from the intact arm where there is one."""
    arms: dict[str, dict[str, Any]] = {}
    columns: dict[str, None] = {}
    for row in _rows(comparison["rows"]):
        metric = row["metric"]
        found = {metric: row["value"], f"{metric}, minus intact": row.get("difference")}
        arms.setdefault(row["arm"], {}).update(found)
        columns |= dict.fromkeys(found)
    kept = [name for name in columns if any(values.get(name) for values in arms.values())]
    return [
        {"arm": arm} | {name: values.get(name) for name in kept} for arm, values in arms.items()
    ]


def _output_row(effect: Mapping[str, Any]) -> dict[str, Any]:
    output = {key: value for key, value in effect["output"].items() if value is not None}
    return {"images": effect.get("n_images")} | output


def _ranking_rows(neurons: Mapping[str, Any]) -> list[Row]:
    """The chosen neurons, best first."""
    chosen = {
        (int(layer), neuron)
        for layer, listed in neurons.get("layer_to_neurons", {}).items()
        for neuron in listed
    }
    return [
        {"layer": layer, "neuron": neuron, "score": score}
        for layer, neuron, score in neurons["ranking"]
        if (layer, neuron) in chosen
    ]


def _calibration_rows(summary: Mapping[str, Any]) -> list[Row]:
    """From `calibration`, or from the evidence of a RegisterNeurons."""
    curves = [summary.get("calibration")]
    for value in summary.values():
        if _is_artefact(value):
            curves.append(value.get("evidence", {}).get("curve"))
    return next((rows for rows in map(_rows, curves) if rows), [])


def _rows(value: Any) -> list[Row]:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [row for row in value if isinstance(row, Mapping)]
    return []


def _value(value: Any) -> float | None:
    return float(value) if is_number(value) else None
