"""The scripts on language models: headers, files, and the numbers that the headers promise."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STORIES = ROOT / ".." / "shared" / "assets" / "stories260K"
SCRIPTS = sorted(path.stem for path in (ROOT / "analyses" / "llm").glob("[!_]*.py"))
SMALL = {"limit": 12, "length": 32}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A small run of every script on the planted model."""
    from analyses._run import run

    found = {}
    for name in SCRIPTS:
        module = importlib.import_module(f"analyses.llm.{name}")
        out = tmp_path_factory.mktemp(name)
        run(module, module.Config(out=out, **SMALL))
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


def test_the_sink_needs_its_first_token_and_no_text(results):
    rates = {name: row["sink_rate"] for name, row in results["random_tokens"].items()}
    assert rates["texts"] == rates["random tokens"] == 0.5
    assert rates["random tokens, no BOS"] == rates["one token repeated"] == 0
    assert results["random_tokens"]["random tokens, no BOS"]["massive_dims"] == []


@pytest.mark.skipif(not STORIES.is_dir(), reason="no ../shared/assets/stories260K")
def test_a_real_model_without_a_sink_shows_none(tmp_path):
    from analyses.llm import bias, curves, set_values, sink_rate
    from ttreg_interp.errors import DataError

    options = {
        "lm": f"llama2c:{STORIES / 'stories260K.bin'}",
        "texts": str(STORIES / "tinystories_1000.json"),
        "limit": 12,
        "length": 64,  # at 32 evenly spread attention comes near epsilon
    }
    assert curves.analyse(curves.Config(out=tmp_path, **options)).numbers["dims"] == []
    assert sink_rate.analyse(sink_rate.Config(out=tmp_path, **options)).numbers["rate"] == 0
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
