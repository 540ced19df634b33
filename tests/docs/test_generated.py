"""What the docs say of scripts and commands is what these say of themselves."""

import importlib
import json
from dataclasses import fields
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "analyses"
RESULTS = json.loads((PAGES / "results.json").read_text(encoding="utf-8"))

SCRIPT = '''"""Is the sum of two and two four?

Paper and place: arXiv 0000.00000, Table 1.
Question: is it a | sum?
Command: python -m analyses.paper.sums --out OUT
Runtime: no time.
Expect: four, on
two lines.
"""
'''


@pytest.fixture
def pages(extension, tmp_path, monkeypatch):
    """The extension over a folder with one script and two files that are none."""
    module = extension("script_pages")
    for name, text in {"sums": SCRIPT, "_parts": SCRIPT, "run": '"""No head."""\n'}.items():
        file = tmp_path / "analyses" / "paper" / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    docs = tmp_path / "docs" / "analyses"
    docs.mkdir(parents=True)
    (docs / "results.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "PAGES", docs)
    return module


def test_a_new_script_has_a_page_with_its_head_and_its_command(pages):
    pages.write_pages(None)
    assert [file.name for file in pages.PAGES.rglob("*.md")] == ["sums.md"]
    text = (pages.PAGES / "paper" / "sums.md").read_text(encoding="utf-8")
    assert text.startswith("# sums\n\nIs the sum of two and two four?\n")
    assert "| Question | is it a \\| sum? |" in text and "| Expect | four, on two lines. |" in text
    assert "```sh\npython -m analyses.paper.sums --out OUT\n```" in text
    assert "literalinclude} ../../../analyses/paper/sums.py" in text


def test_a_page_goes_with_its_script(pages):
    pages.write_pages(None)
    (pages.ROOT / "analyses" / "paper" / "sums.py").unlink()
    pages.write_pages(None)
    assert not list(pages.PAGES.rglob("*.md"))


def test_a_page_shows_the_result_that_was_kept(pages):
    kept = {"headline": "2 * 2", "words": "It is **four**.", "made": "0 s."}
    (pages.PAGES / "results.json").write_text(json.dumps({"paper/sums": kept}), encoding="utf-8")
    pages.write_pages(None)
    text = (pages.PAGES / "paper" / "sums.md").read_text(encoding="utf-8")
    assert "**2 \\* 2**" in text and "It is **four**." in text and "figures" not in text


def test_every_folder_of_scripts_has_its_place_in_the_navigation(extension):
    rooms = extension("script_pages").ROOMS
    folders = {file.parent.name for file in (ROOT / "analyses").glob("*/[!_]*.py")}
    assert folders == {folder for folder in rooms.values() if folder}
    for room in rooms:
        assert f"```{{analyses}} {room}\n" in (PAGES / f"{room}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(RESULTS))
def test_a_kept_result_is_of_a_script_as_it_is_now(name):
    script = importlib.import_module(f"analyses.{name.replace('/', '.')}")
    known = {field.name for field in fields(script.Config)}
    assert set(RESULTS[name]["configuration"]) <= known, "run docs/analyses/collect.py again"


def test_kept_figures_are_small_and_of_kept_results():
    figures = sorted((PAGES / "figures").rglob("*.png"))
    assert {f"{file.parent.name}/{file.stem}" for file in figures} <= set(RESULTS)
    assert sum(file.stat().st_size for file in figures) < 2_000_000


def test_the_reference_of_a_command_is_its_help(extension, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    said = extension("command_help").help_of("merge")
    assert said.startswith("usage: ttreg merge") and "The merged file. (required)" in said
    assert max(map(len, said.split("\n"))) <= 88


def test_every_public_name_is_in_the_reference(extension):
    room, listed = extension("room"), extension("public_names").rows()
    documented = set()
    for page in (ROOT / "docs" / "reference" / "api").glob("*.md"):
        for module in room.modules(page.stem) if page.stem not in ("index", "analyses") else ():
            file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
            documented |= {f"{module}.{name}" for name in room.public_names(file)}
    assert {path for _, path, _ in listed} <= documented
    assert all(first.endswith(".") for _, _, first in listed)
