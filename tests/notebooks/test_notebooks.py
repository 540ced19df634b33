"""The notebooks run as they stand, on the embedded model, and are built from their sources."""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9]*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_notebook_runs(source, tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib draws the figures")
    pytest.importorskip("skimage", reason="scikit-image holds the photographs")
    matplotlib.use("agg")
    from matplotlib import pyplot

    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    exec(compile(source.read_text(encoding="utf-8"), source.name, "exec"), names)
    for number in pyplot.get_fignums():
        pyplot.figure(number).canvas.draw()
    pyplot.close("all")


def cells_of_source(text: str) -> list[tuple[str, str]]:
    """Kind and text of every cell of a py:percent file, comment marks of Markdown removed."""
    _, *cells = re.split(r"^# %%(?= \[markdown\]$|$)", text, flags=re.MULTILINE)
    found = []
    for cell in cells:
        head, body = cell.split("\n", 1)
        if head == " [markdown]":
            found.append(("markdown", re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip()))
        else:
            found.append(("code", body.strip()))
    return found


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_built_notebook_has_the_cells_of_its_source(source):
    built = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))
    cells = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in built["cells"]]
    assert cells == cells_of_source(source.read_text(encoding="utf-8")), "run `make notebooks`"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_a_built_notebook_was_run_without_errors(source):
    built = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in built["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert all(cell["execution_count"] for cell in code)
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]


def test_built_notebooks_stay_small():
    assert sum(built.stat().st_size for built in FOLDER.glob("*.ipynb")) < 3_000_000


def test_every_notebook_installs_the_package_where_it_is_missing():
    for source in SOURCES:
        first = next(
            body
            for kind, body in cells_of_source(source.read_text(encoding="utf-8"))
            if kind == "code"
        )
        assert 'find_spec("ttreg_interp") is None' in first
        assert '"ttreg-interp[demo]"' in first
