"""The theory scripts: small runs give the numbers that their headers promise, and write all files."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "convergence": {"draws": 3},
    "phase": {"draws": 2, "levels": 4, "columns": 8},
    "assumptions": {"draws": 3},
    "norms": {"draws": 3},
}
PROMISED_ONE = {
    "convergence": [
        "token_slope_over_minus_c",
        "gain_slope_over_minus_c",
        "gain_register_slope_over_minus_c",
    ],
    "phase": [
        "token_cells_where_onset_predicts_the_sink",
        "gain_cells_where_onset_predicts_the_sink",
    ],
    "assumptions": ["aligned_error_over_predicted", "sink_is_empty_error_over_predicted"],
    "norms": ["register_slope_over_minus_c", "gain_and_drain_decades_per_decade"],
}


@pytest.fixture(scope="module", params=SMALL)
def script(request, tmp_path_factory):
    """One small run of a script."""
    name, out = request.param, tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        module = importlib.import_module(f"analyses.theory.{name}")
        from analyses._run import run

        run(module, module.Config(out=out, **SMALL[name]))
    return SimpleNamespace(
        name=name, out=out, header=module.__doc__, text=(out / "result.json").read_text()
    )


def test_a_script_writes_configuration_versions_and_intervals(script):
    result = json.loads(script.text)
    intervals = [value for value in result["numbers"].values() if isinstance(value, dict)]
    assert result["configuration"].items() >= SMALL[script.name].items()
    assert {"ttreg-interp", "torch", "python"} <= set(result["versions"])
    assert all(value["n"] == result["configuration"]["draws"] for value in intervals)
    for value in intervals:  # draws that are equal up to rounding have an interval of that size
        rounding = 1e-12 * abs(value["estimate"])
        assert value["low"] - rounding <= value["estimate"] <= value["high"] + rounding
    assert str(script.out) not in script.text


def test_a_script_writes_words_and_figures(script):
    assert len((script.out / "summary.md").read_text().split()) > 40
    assert (script.out / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (script.out / "figure.svg").read_text()


def test_a_script_finds_the_ratio_of_one_that_its_header_promises(script):
    numbers = json.loads(script.text)["numbers"]
    means = [numbers[name]["estimate"] for name in PROMISED_ONE[script.name]]
    assert means == pytest.approx([1.0] * len(means), rel=0.01)


def test_a_script_opens_with_paper_question_command_runtime_and_expectation(script):
    words = ("Paper and place", "Question", "Command", "Runtime", "Expect")
    places = [script.header.index(f"\n{word}:") for word in words]
    assert places == sorted(places)
    assert f"python -m analyses.theory.{script.name} --out" in script.header
