"""The extensions of the documentation, which lie beside it and not in the package."""

import importlib
from pathlib import Path

import pytest

EXTENSIONS = Path(__file__).resolve().parents[2] / "docs" / "_ext"


@pytest.fixture
def extension(monkeypatch):
    """An extension by its name."""
    pytest.importorskip("sphinx", reason="Sphinx builds the docs; `make docs` installs it")
    monkeypatch.syspath_prepend(str(EXTENSIONS))
    return importlib.import_module
