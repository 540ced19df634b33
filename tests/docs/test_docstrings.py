"""Examples in docstrings run, and docstrings become what docutils reads."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in (ROOT / "ttreg_interp").rglob("*.py")
    if ">>> " in file.read_text(encoding="utf-8")
)
RUN = """
import doctest, importlib, sys, torch
torch.set_num_threads(1)
failed = 0
for name in sys.argv[1:]:
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    failed += results.failed or not results.attempted
sys.exit(failed)
"""


def test_the_examples_run_as_a_user_runs_them(tmp_path):
    """In a process of their own: `torch.export` cannot trace functions whose shapes are checked."""
    paths = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [sys.executable, "-c", RUN, *MODULES],
        cwd=tmp_path,
        env={**os.environ, **paths},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture(scope="module")
def to_rst():
    sys.path.insert(0, str(ROOT / "docs" / "_ext"))
    yield importlib.import_module("docstrings").to_rst
    sys.path.remove(str(ROOT / "docs" / "_ext"))


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("plain words", "plain words"),
        ("mean of |a_t|, a*", r"mean of \|a_t\|, a*"),
        ("`a | b` stays", "`a | b` stays"),
        ("`Batch`es", r"`Batch`\ es"),
        ("rate $c_h$ of it", "rate :math:`c_h` of it"),
        ("$$a\n  = b$$", ":math:`a = b`"),
    ],
)
def test_markdown_in_text_becomes_restructuredtext(to_rst, docstring, expected):
    assert "\n".join(to_rst(docstring.split("\n"))) == expected


def test_indented_blocks_and_tables_are_shown_as_they_stand(to_rst):
    text = "x:\n\n    |a| = b*\n\n| head | b |\n|---|---|"
    shown = to_rst(text.split("\n"))
    assert shown.count("::") == 2
    assert "    |a| = b*" in shown
    assert "    | head | b |" in shown


def test_doctests_are_left_alone(to_rst):
    lines = ["One.", "", "Example:", "    >>> a | b", "    *x*"]
    assert to_rst(lines) == lines
