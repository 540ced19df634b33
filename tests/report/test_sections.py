"""The caller's tables: every value readable, intervals on one axis a column."""

import pytest

from ttreg_interp.metrics.intervals import Interval
from ttreg_interp.report.sections import calibration, tables
from ttreg_interp.report.tables import make_table


def interval(low: float, estimate: float, high: float) -> dict:
    return Interval(estimate, low, high, level=0.95, method="bootstrap", n=20).to_dict()


def texts(table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (False, "no"),
        (3, "3"),
        (0.123456, "0.1235"),
        ("words", "words"),
        ([1, 2.5, "x"], "1, 2.5, x"),
        ({"low_end": 1, "b": None}, "low end 1, b –"),
        (interval(0.1, 0.2, 0.3), "0.20 [0.10, 0.30]"),
    ],
)
def test_every_kind_of_value_is_readable(value, text):
    assert texts(make_table("t", [{"x": value}])) == [[text]]


def test_columns_come_in_order_of_appearance_and_gaps_are_shown():
    table = make_table("causal_table", [{"arm": "a", "n": 1}, {"arm": "b", "p_value": 0.5}])
    assert table.title == "causal table"
    assert table.columns == ("arm", "n", "p value")
    assert texts(table) == [["a", "1", "–"], ["b", "–", "0.5"]]


def test_intervals_of_a_column_share_one_axis():
    table = make_table("t", [{"x": interval(-1.0, 0.0, 1.0)}, {"x": interval(1.0, 2.0, 3.0)}])
    (first,), (second,) = table.rows
    assert first.bar[2] == second.bar[0]
    assert table.zeros[0] == first.bar[1]
    assert all(0 <= end <= 100 for cell in (first, second) for end in cell.bar)


def test_a_table_says_once_how_its_intervals_were_found():
    table = make_table("t", [{"x": interval(0.0, 1.0, 2.0)}, {"x": interval(0.0, 1.0, 3.0)}])
    assert table.notes == ("95% intervals: bootstrap, n = 20.",)
    by_hand = {"low": 0, "estimate": 1, "high": 2}
    table = make_table("t", [{"x": by_hand, "y": 1}])
    assert table.notes == ()
    assert texts(table) == [["1.0 [0.0, 2.0]", "1"]]


def test_zero_is_not_marked_where_the_axis_does_not_reach_it():
    assert make_table("t", [{"x": interval(5.0, 6.0, 7.0)}]).zeros == (None,)


@pytest.mark.parametrize("value", [0.0, 3.5])
def test_an_interval_of_one_point_is_drawn(value):
    (row,) = make_table("t", [{"x": interval(value, value, value)}]).rows
    assert row[0].bar[0] == row[0].bar[1] == row[0].bar[2]


EFFECT = {
    "intervention": {"kind": "Empty"},
    "n_images": 7,
    "output": {"cosine": interval(0.8, 0.9, 0.95), "same_top1": None},
    "layers": [{"layer": 0, "max_norm_before": 1.5}],
}


@pytest.mark.parametrize(
    "summary", [{"effect": EFFECT}, EFFECT, EFFECT | {"model": "m", "versions": {"torch": "2"}}]
)
def test_an_effect_shows_its_output_with_intervals_and_its_layers(summary):
    output, layers = tables(summary)
    assert (output.title, layers.title) == ("effect", "effect, layer by layer")
    assert output.columns == ("images", "cosine")
    assert texts(output) == [["7", "0.90 [0.80, 0.95]"]]
    assert texts(layers) == [["0", "1.5"]]
    assert (output.folded, layers.folded) == (False, True)


def test_effects_by_arm_share_a_table():
    (table,) = tables({"arms": {"register": EFFECT, "control": EFFECT}})
    assert table.columns == ("arm", "images", "cosine")
    assert [row[0].text for row in table.rows] == ["register", "control"]


NEURONS = {
    "layer_to_neurons": {"2": [5], "3": [7]},
    "ranking": [[2, 5, 9.0], [3, 7, 8.0], [3, 1, 0.1]],
    "evidence": {"curve": [{"k": 0, "left": 1.0}, {"k": 2, "left": 0.1}]},
}


def test_the_artefact_of_a_discovery_shows_its_neurons_and_its_curve():
    (table,) = tables({"neurons": NEURONS})
    assert texts(table) == [["2", "5", "9"], ["3", "7", "8"]]
    (chart,), table = calibration({"neurons": NEURONS})
    assert (chart.title, chart.x_label) == ("Left", "neurons")
    assert (chart.x, chart.series) == ((0, 2), (("left", (1.0, 0.1)),))
    assert texts(table) == [["0", "1"], ["2", "0.1"]]


def test_each_number_of_a_calibration_has_a_chart_with_an_axis_of_its_own():
    rows = [{"k": k, "outliers_left": 1 - k / 2, "drift": k / 1000} for k in range(3)]
    charts, table = calibration({"calibration": rows})
    assert [chart.title for chart in charts] == ["Outliers left", "Drift"]
    assert [chart.series for chart in charts] == [
        (("outliers left", (1.0, 0.5, 0.0)),),
        (("drift", (0.0, 0.001, 0.002)),),
    ]
    assert table.columns == ("k", "outliers left", "drift")


@pytest.mark.parametrize(
    "rows", [None, [], [{"k": 1, "left": 1.0}], [{"k": 1}, {"k": 2}], "a sentence"]
)
def test_what_is_no_curve_is_not_drawn(rows):
    assert calibration({"calibration": rows}) is None


def test_sections_that_hold_no_rows_make_no_table():
    assert tables({"note": "a sentence", "empty": [], "calibration": NEURONS}) == []


def test_a_comparison_is_a_table_with_a_row_an_arm():
    rows = [
        {"arm": "intact", "metric": "norm", "value": interval(4.0, 5.0, 6.0), "difference": None},
        {"arm": "intact", "metric": "cosine", "value": interval(1.0, 1.0, 1.0), "difference": None},
        {
            "arm": "register",
            "metric": "norm",
            "value": interval(0.0, 1.0, 2.0),
            "difference": interval(-5.0, -4.0, -3.0),
        },
        {"arm": "register", "metric": "cosine", "value": interval(0.7, 0.8, 0.9)},
    ]
    (table,) = tables({"causal": {"rows": rows, "seed": 0}})
    assert table.columns == ("arm", "norm", "norm, minus intact", "cosine")
    assert texts(table) == [
        ["intact", "5.0 [4.0, 6.0]", "–", "1.00 [1.00, 1.00]"],
        ["register", "1.0 [0.0, 2.0]", "-4.0 [-5.0, -3.0]", "0.80 [0.70, 0.90]"],
    ]


def test_what_compare_returns_is_such_a_table():
    import torch

    import ttreg_interp as tt

    model = tt.load("timm:test_vit?random")
    found = tt.compare(model, torch.randn(3, 3, 160, 160), {"zero": tt.ZeroNeurons({1: [3]})})
    (table,) = tables({"causal": found.to_dict()})
    assert [row[0].text for row in table.rows] == ["intact", "zero"]
    assert table.columns[:2] == ("arm", "relative change")
