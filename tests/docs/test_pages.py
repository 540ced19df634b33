"""Every error has its page, whose example raises it; the tutorial runs; no page is lost."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted((DOCS / "errors").glob("*-error.md"))


def code(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def errors() -> dict[str, type]:
    importlib.import_module("ttreg_interp.theory.parts")
    from ttreg_interp.errors import TTRegError

    found, todo = {}, [TTRegError]
    while todo:
        for cls in todo.pop().__subclasses__():
            found[cls.__name__] = cls
            todo.append(cls)
    return {name: cls for name, cls in found.items() if cls.__module__.startswith("ttreg_interp")}


def test_every_error_has_a_page():
    titles = {page.read_text(encoding="utf-8").split("\n")[0].removeprefix("# ") for page in PAGES}
    assert titles == set(errors())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_example_of_an_error_raises_it(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = page.read_text(encoding="utf-8").split("\n")[0].removeprefix("# ")
    (example,) = code(page)
    with pytest.raises(errors()[name]) as raised:
        exec(compile(example, page.name, "exec"), {})
    assert type(raised.value).__name__ == name


def test_an_error_is_described_as_its_class_is():
    for page in PAGES:
        title, _, what, *_ = page.read_text(encoding="utf-8").split("\n")
        assert what == errors()[title.removeprefix("# ")].__doc__.split("\n")[0]


def test_the_code_of_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("skimage", reason="scikit-image holds the photographs")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in code(DOCS / "tutorial.md"):
        exec(compile(block, "tutorial.md", "exec"), names)
    assert names["found"].neurons == names["tt"].NeuronSet.of(planted_truth())
    assert "register" in capsys.readouterr().out


def planted_truth() -> dict:
    from ttreg_interp.testbed import planted_vit

    return planted_vit(image_size=112).truth


def test_every_page_is_in_a_table_of_contents():
    for folder in ("how-to", "concepts", "reference", "errors", "reference/api"):
        index = (DOCS / folder / "index.md").read_text(encoding="utf-8")
        assert ":glob:" in index
    for folder in (DOCS, DOCS / "analyses"):
        index = (folder / "index.md").read_text(encoding="utf-8")
        for page in folder.glob("*.md"):
            assert page.stem == "index" or f"\n{page.stem}\n" in index, page.name


def test_every_room_of_the_house_has_its_reference():
    rooms = {p.name for p in (ROOT / "ttreg_interp").iterdir() if (p / "__init__.py").exists()}
    pages = {page.stem for page in (DOCS / "reference" / "api").glob("*.md")}
    assert rooms - pages <= {"cli", "app"}


def test_every_command_is_named():
    from ttreg_interp.cli import COMMANDS

    page = (DOCS / "reference" / "command-line.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert re.search(rf"^ttreg {command}\b", page, flags=re.MULTILINE), command
