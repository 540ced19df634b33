"""Scripts as a stranger meets them: headers, result files, the page, the docs' table, the command."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "analyses" / "paper").glob("[!_]*.py"))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder with the results of a run of two scripts."""
    from analyses.__main__ import All

    folder = tmp_path_factory.mktemp("out")
    (folder / "fig25_decoder").mkdir()
    (folder / "fig25_decoder" / "view.html").touch()
    everything = All(out=folder, image_size=112, only=("fig25_decoder", "reb_attention"))
    assert everything.run() == 0
    return folder


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_opens_with_place_question_command_runtime_and_expectation(name):
    import ast

    from analyses._run import FIELDS, Header

    text = (ROOT / "analyses" / "paper" / f"{name}.py").read_text(encoding="utf-8")
    header = Header.of(ast.get_docstring(ast.parse(text)))
    assert header.title and list(header.fields) == list(FIELDS)
    assert header.fields["Command"] == f"python -m analyses.paper.{name} --out OUT"
    assert "arXiv" in header.fields["Paper and place"]


def test_a_result_says_what_it_was_made_from(out):
    result = json.loads((out / "fig25_decoder" / "result.json").read_text(encoding="utf-8"))
    assert result["configuration"]["image_size"] == 112 and "out" not in result["configuration"]
    assert len(result["facts"]["weights_sha256"]) == 64 == len(result["facts"]["images_sha256"])
    assert result["facts"]["neurons_from"] == "planted" and result["facts"]["n_images"] == 16
    assert {"python", "torch", "ttreg-interp"} <= set(result["versions"])
    assert str(out) not in json.dumps(result)


def test_figures_are_there_for_screen_and_print(out):
    for name in ("fig25_decoder", "reb_attention"):
        assert (out / name / "figure.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (out / name / "figure.svg").read_text(encoding="utf-8")


def test_the_page_needs_no_network_and_links_to_what_can_be_pointed_at(out):
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("<section") == 2 and 'src="http' not in page
    assert 'href="fig25_decoder/view.html"' in page


def test_a_script_with_nothing_to_analyse_is_named_on_the_page(tmp_path, capsys):
    from analyses.__main__ import All

    clean = All(
        out=tmp_path, model="testbed:clean", neurons="2:5", image_size=112, only=("fig25_decoder",)
    )
    assert clean.run() == 1
    assert "Nothing to analyse. No outliers" in capsys.readouterr().out
    assert "Nothing to analyse" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_the_docs_table_has_a_line_for_every_result(out, tmp_path):
    from analyses.table import Config, main

    page = tmp_path / "paper.md"
    page.write_text("# Title\n", encoding="utf-8")
    for _ in range(2):
        main(Config(embedded=out, real=tmp_path / "none", page=page))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Title") and text.count("| `fig25_decoder` | top-2") == 1
    assert {name for name in SCRIPTS if f"| `{name}` |" in text} == {
        "fig25_decoder",
        "reb_attention",
    }


def test_ttreg_lists_all_analyses(capsys):
    from ttreg_interp.cli.analyses import Analyses

    assert Analyses(json=True).run() == 0
    listed = json.loads(capsys.readouterr().out)["analyses"]
    assert [entry["name"] for entry in listed] == SCRIPTS
    assert all(entry["title"] and "arXiv" in entry["place"] for entry in listed)


@pytest.mark.parametrize(
    ("name", "module"),
    [("fig25_decoder", ["analyses.paper.fig25_decoder"]), ("all", ["analyses", "paper"])],
)
def test_ttreg_runs_an_analysis_in_its_own_process(name, module, monkeypatch, tmp_path):
    from ttreg_interp.cli import analyses

    calls = []

    class Done:
        returncode = 3

    monkeypatch.setattr(
        analyses.subprocess, "run", lambda command, env, check: calls.append((command, env)) or Done
    )
    assert analyses.Analyses(name=name, out=tmp_path, limit=4).run() == 3
    command, env = calls[0]
    assert (
        command[:3] == [sys.executable, "-m", module[0]]
        and command[3 : 2 + len(module)] == module[1:]
    )
    assert command[-2:] == ["--limit", "4"] and "--model" not in command
    assert env["PYTHONPATH"].startswith(str(ROOT))


def test_ttreg_says_which_analyses_there_are_and_where_they_come_from(monkeypatch, tmp_path):
    from ttreg_interp.cli import analyses
    from ttreg_interp.errors import DataError

    with pytest.raises(
        DataError, match="No analysis 'fig99' in paper; there are .*fig02_emergence"
    ):
        analyses.Analyses(name="fig99").run()
    with pytest.raises(DataError, match="No folder nowhere/ in analyses/"):
        analyses.Analyses(room="nowhere").run()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(analyses, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    with pytest.raises(DataError, match="come with a checkout"):
        analyses.Analyses().run()


def test_numbers_that_are_not_finite_become_none_and_tensors_lists():
    import torch

    from analyses._run import plain

    assert plain({"a": float("nan"), 2: torch.tensor([1.0, 2.0]), "b": (True, None)}) == {
        "a": None,
        "2": [1.0, 2.0],
        "b": [True, None],
    }


def test_register_neurons_are_told_on_the_command_line_in_a_file_or_found(tmp_path):
    from analyses._bench import _neurons
    from ttreg_interp.discovery import FindConfig, RegisterNeurons
    from ttreg_interp.hooked import HookedViT, weights_hash
    from ttreg_interp.interventions import NeuronSet
    from ttreg_interp.testbed import photograph_tensor, planted_vit

    vit = planted_vit(image_size=64, depth=6, width=96)
    model, pixels = HookedViT.wrap(vit.module), photograph_tensor(64)
    truth = NeuronSet.of(vit.truth)
    told = ",".join(f"{layer}:{neuron}" for layer, neuron in truth)
    known = RegisterNeurons(truth, weights_hash=weights_hash(model.source))
    file = known.save(tmp_path / "neurons.json")
    options = FindConfig(evidence=False)
    for given, origin in ((told, "the command line"), (str(file), "a file"), ("", "found on")):
        neurons, by = _neurons(model, given, None, pixels, options)
        assert neurons == truth and by.startswith(origin)
    assert _neurons(model, "", vit, pixels, options) == (truth, "planted")
