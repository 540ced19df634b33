"""Builds the notebooks: runs every py:percent source and writes it with its outputs as .ipynb.

    python notebooks/build.py [SOURCE ...]

What varies between two builds without meaning anything (times, cell ids, versions) is left out.
"""

import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def build(source: Path) -> Path:
    """Run one source in an empty folder and write the notebook beside it."""
    notebook = jupytext.read(source)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=600, record_timing=False, resources=resources).execute()
    notebook.metadata = {
        "kernelspec": notebook.metadata.kernelspec,
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "code":  # warnings name paths of the machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    built = source.with_suffix(".ipynb")
    nbformat.write(notebook, built)
    return built


if __name__ == "__main__":
    for source in [Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("[0-9]*.py")):
        print(build(source))
