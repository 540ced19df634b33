"""The scripts on language models: headers, files, and the numbers that the headers promise."""

import importlib
import json
from dataclasses import fields
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STORIES = ROOT / ".." / "shared" / "assets" / "stories260K"
SCRIPTS = sorted(path.stem for path in (ROOT / "analyses" / "llm").glob("[!_]*.py"))
SMALL = {"limit": 14, "length": 32, "draws": 2}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A small run of every script on the planted model."""
    from analyses._run import run

    found = {}
    for name in SCRIPTS:
        module = importlib.import_module(f"analyses.llm.{name}")
        out = tmp_path_factory.mktemp(name)
        taken = {field.name for field in fields(module.Config)}
        run(module, module.Config(out=out, **{k: v for k, v in SMALL.items() if k in taken}))
        found[name] = json.loads((out / "result.json").read_text(encoding="utf-8"))
        assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    return {name: result["numbers"] for name, result in found.items()}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_opens_with_place_question_command_runtime_and_expectation(name):
    from analyses._run import FIELDS, Header

    header = Header.of(importlib.import_module(f"analyses.llm.{name}").__doc__)
    assert header.title and list(header.fields) == list(FIELDS)
    assert header.fields["Command"] == f"python -m analyses.llm.{name} --out OUT"


def test_the_planted_model_shows_what_the_headers_promise(results):
    assert results["curves"]["dims"] == [62, 63] and results["curves"]["step_up"] == 1
    assert results["picture"]["token"] == 0 and results["picture"]["dim"] in (62, 63)
    assert results["sink_rate"]["rate"] == 0.5
    assert results["decomposition"]["by_layer"]["0"][0] < 0.2
    sinking = [h for h in results["decomposition"]["heads"] if h["layer"] > 1 and h["head"]]
    assert all(h["attention"]["estimate"] > 0.9 and h["cosine"] > 0.99 for h in sinking)
    zero, mean = (results["set_values"]["change"][name] for name in ("zero", "mean"))
    assert zero > 0.1 and abs(mean) < 1e-3
    assert abs(results["set_values"]["change"]["control: other dimensions zero"]) < 0.2 * zero


def test_the_bias_does_what_the_register_does(results):
    change = results["bias"]["change"]
    lost = min(change["neurons zeroed"], change["sink cut"])
    assert lost > 0.1
    assert max(change["register"], change["k', v' of the register"]) < 0.4 * lost
    assert abs(change["control: random neurons zeroed"]) < 0.2 * lost


def test_moved_neurons_take_norm_sink_and_massive_activation_along(results):
    arms = results["transfer"]["arms"]
    intact, zeroed, moved = (arms[name] for name in ("intact", "neurons zeroed", "register"))
    random = arms["control: random neurons moved, 2 draws"]
    assert results["transfer"]["neurons"]["neurons"] == {"1": [7, 70]}
    assert (intact["sink"], zeroed["sink"], moved["sink"], moved["sink_register"]) == (
        0.5,
        0,
        0,
        0.5,
    )
    assert intact["norm"] > 100 > 4 > max(zeroed["norm"], moved["norm"])
    assert moved["norm_register"] > 100 > 1 > random["norm_register"]
    assert (intact["massive"], zeroed["massive"]) == (["first"], [])
    assert (moved["massive"], random["massive"]) == (["register"], ["first"])
    assert zeroed["change"]["low"] > 0.05
    assert moved["change"]["estimate"] < 0.5 * zeroed["change"]["estimate"]
    late = arms["register, seen from layer 2"]["change"]
    assert late["estimate"] < moved["change"]["estimate"]  # an empty key costs in the blocks before
    assert arms["control: empty token, neurons zeroed"]["change"]["low"] > 0.05


def test_the_arms_of_five_seeds_have_intervals_and_say_what_the_sink_is_for(results):
    arms = results["seeds"]["arms"]
    assert all(row["loss_free"]["n"] == 5 for row in arms.values())
    assert arms["intact"]["loss_free"]["estimate"] == 0
    cut, bias, register, random = (
        arms[name]["loss_free"]["estimate"]
        for name in (
            "sink hidden",
            "sink hidden, k' and v'",
            "sink hidden, register",
            "sink hidden, register (random neurons)",
        )
    )
    assert abs(bias) < 1e-3 < 0.1 * cut and register < 0.3 * cut < 0.9 * random
    at_once, late = (
        arms[f"token of zeros, seen from {where}"]["loss_certain"]["estimate"]
        for where in ("layer 0", "the sink's layer")
    )
    assert at_once > 0.05 > 0.01 > abs(late)
    assert 0.2 < results["seeds"]["sinks"]["estimate"] < 0.9


def test_an_interval_over_seeds_is_students():
    from analyses.llm.seeds import over_seeds
    from ttreg_interp.errors import DataError

    found = over_seeds([1.0, 2.0, 3.0])  # t(0.975, 2) = 4.3027, standard error 1 / sqrt(3)
    assert (found.estimate, found.n) == (2.0, 3)
    assert found.high - 2 == pytest.approx(4.30265 / 3**0.5, rel=1e-4)
    with pytest.raises(DataError, match="Found 1 seeds"):
        over_seeds([1.0])


def test_runs_that_are_not_there_are_told(tmp_path):
    from analyses.llm import seeds
    from ttreg_interp.errors import DataError

    with pytest.raises(DataError, match="No run of 7 updates"):
        seeds.analyse(seeds.Config(out=tmp_path, steps=7))


def test_the_sink_needs_its_first_token_and_no_text(results):
    rates = {name: row["sink_rate"] for name, row in results["random_tokens"].items()}
    assert rates["texts"] == rates["random tokens"] == 0.5
    assert rates["random tokens, no BOS"] == rates["one token repeated"] == 0
    assert results["random_tokens"]["random tokens, no BOS"]["massive_dims"] == []


@pytest.mark.skipif(not STORIES.is_dir(), reason="no ../shared/assets/stories260K")
def test_a_real_model_without_a_sink_shows_none(tmp_path):
    from analyses.llm import bias, curves, set_values, sink_rate, transfer
    from ttreg_interp.errors import DataError

    options = {
        "lm": f"llama2c:{STORIES / 'stories260K.bin'}",
        "texts": str(STORIES / "tinystories_1000.json"),
        "limit": 12,
        "length": 64,  # at 32 evenly spread attention comes near epsilon
    }
    assert curves.analyse(curves.Config(out=tmp_path, **options)).numbers["dims"] == []
    assert sink_rate.analyse(sink_rate.Config(out=tmp_path, **options)).numbers["rate"] == 0
    moved = transfer.analyse(transfer.Config(out=tmp_path, **options))
    assert moved.headline.startswith("no register neurons; an empty token alone")
    assert list(moved.numbers["arms"]) == ["intact", "control: empty token"]
    with pytest.raises(DataError, match="No register neurons"):
        bias.analyse(bias.Config(out=tmp_path, **options))
    with pytest.raises(DataError, match="Nothing to set"):
        set_values.analyse(set_values.Config(out=tmp_path, **options))


def test_a_model_without_texts_asks_for_them(tmp_path):
    from analyses.llm import curves
    from ttreg_interp.errors import DataError
    from ttreg_interp.testbed.random_lm import random_lm

    random_lm("gpt2").save_pretrained(tmp_path / "model")
    with pytest.raises(DataError, match="needs texts: --texts FILE"):
        curves.analyse(curves.Config(out=tmp_path, lm=f"hf-lm:{tmp_path / 'model'}"))
