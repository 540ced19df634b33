"""The house: public names, arrows between rooms, links in the docs, and how long things are."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "ttreg_interp").rglob("*.py"))
ROOMS = [
    "hooked",
    "interventions",
    "discovery",
    "theory",
    "metrics",
    "data",
    "evaluations",
    "testbed",
    "deploy",
    "backends",
    "report",
    "app",
    "cli",
]


def imported(file: Path) -> set[str]:
    """Modules that a file imports at its top level."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_every_public_name_is_there():
    import ttreg_interp

    for name in ttreg_interp.__all__:
        assert getattr(ttreg_interp, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'find_neurons'; it has"):
        _ = ttreg_interp.find_neurons


def test_the_core_knows_no_analysis():
    for file in SOURCES:
        assert not any(name.split(".")[0] == "analyses" for name in imported(file)), file


@pytest.mark.parametrize(
    ("room", "strangers"), [("hooked", ROOMS[1:]), ("interventions", ROOMS[2:])]
)
def test_the_ground_floor_knows_nothing_above_it(room, strangers):
    for file in (ROOT / "ttreg_interp" / room).rglob("*.py"):
        for name in imported(file):
            assert not name.startswith(tuple(f"ttreg_interp.{other}" for other in strangers)), (
                file,
                name,
            )


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]), ids=lambda p: p.name
)
def test_links_lead_somewhere(page):
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", prose):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readmes_example_uses_names_that_exist():
    import ttreg_interp as tt

    example = re.search(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    ).group(1)
    assert ast.parse(example)
    for name in re.findall(r"\btt\.(\w+)", example):
        assert hasattr(tt, name), name


@pytest.mark.parametrize("file", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(file):
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            assert node.end_lineno - first.lineno < 60, f"{file.name}: {node.name}"
