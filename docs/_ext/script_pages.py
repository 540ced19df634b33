"""One page an analysis: what the head of its script says, and what its command found.

Before the sources are read, every script of `analyses/` gets a page `docs/analyses/ROOM/NAME.md`, so
that page and script cannot differ and a new script appears by itself. Results of the embedded models
are those that `docs/analyses/collect.py` has kept in `results.json`; a script without one shows its
command. `{analyses} ROOM` lists the pages of a room.
"""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "analyses"
ROOMS = {"paper": "paper", "theory": "theory", "llm": "llm", "more": ""}
"""Pages of a room -> folder under analyses/."""
FIELDS = ("Question", "Paper and place", "Runtime", "Expect", "In the paper")
"""Lines of a head that stand in the table of its page; the command stands below it."""


@dataclass(frozen=True)
class Script:
    """One script, by its head."""

    file: Path
    """Where it is."""
    title: str
    """First sentence."""
    fields: dict[str, str]
    """`Question: ...` and so on, by name."""

    @property
    def module(self) -> str:
        """As `python -m` takes it."""
        return ".".join(self.file.relative_to(ROOT).with_suffix("").parts)

    @classmethod
    def read(cls, file: Path) -> "Script | None":
        """None for a file without a command in its head, which is no script."""
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        title, _, rest = text.partition("\n\n")
        parts = re.split(rf"^({'|'.join((*FIELDS, 'Command'))}): ", rest, flags=re.MULTILINE)
        values = [" ".join(value.replace("\\\n", "").split()) for value in parts[2::2]]
        fields = dict(zip(parts[1::2], values, strict=True))
        return cls(file, " ".join(title.split()), fields) if "Question" in fields else None


def scripts(room: str) -> Iterator[Script]:
    """Scripts of a room, by name."""
    for file in sorted((ROOT / "analyses" / ROOMS[room]).glob("[!_]*.py")):
        if script := Script.read(file):
            yield script


def page(room: str, script: Script, found: dict[str, Any] | None) -> str:
    """Markdown: head, command, result, source."""
    name = script.file.stem
    rows = [f"| {key} | {_cell(script.fields[key])} |" for key in FIELDS if key in script.fields]
    lines = [f"# {name}", "", script.title, "", "| | |", "|---|---|", *rows, ""]
    lines += ["```sh", script.fields["Command"], "```", ""]
    lines += ["`--help` names all settings, model and images among them.", ""]
    lines += [*_result(room, name, found), "## The script", ""]
    source = Path(*[".."] * 3) / script.file.relative_to(ROOT)
    lines += [f"```{{literalinclude}} {source}", ":language: python", "```"]
    return "\n".join(lines) + "\n"


def _result(room: str, name: str, found: dict[str, Any] | None) -> Iterator[str]:
    if found is None:
        return
    yield from ("## On the embedded model", "", f"**{_cell(found['headline'])}**", "")
    yield from (found["words"].strip(), "")
    if (PAGES / "figures" / room / f"{name}.png").exists():
        yield from (f"![{name}](../figures/{room}/{name}.png)", "")
    yield from (f"*Made by the command above: {_cell(found['made'])}*", "")


def _cell(text: str) -> str:
    """Plain text as Markdown in a table."""
    return re.sub(r"([*<$|_`\\])", r"\\\1", text)


def write_pages(app: Any) -> None:
    """Pages of all rooms; only what changed is written, and what has no script goes."""
    results = json.loads((PAGES / "results.json").read_text(encoding="utf-8"))
    for room in ROOMS:
        folder = PAGES / room
        folder.mkdir(exist_ok=True)
        pages = {
            folder / f"{script.file.stem}.md": page(
                room, script, results.get(f"{room}/{script.file.stem}")
            )
            for script in scripts(room)
        }
        for old in set(folder.glob("*.md")) - set(pages):
            old.unlink()
        for file, text in pages.items():
            if not file.exists() or file.read_text(encoding="utf-8") != text:
                file.write_text(text, encoding="utf-8")


class Analyses(SphinxDirective):
    """A table of the scripts of a room, and their place in the navigation."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """One line a script."""
        room = self.arguments[0]
        lines = ["| script | shows | paper and place |", "|---|---|---|"]
        entries = []
        for script in scripts(room):
            self.env.note_dependency(str(script.file))
            link = f"{room}/{script.file.stem}"
            entries.append(link)
            cells = (script.title, script.fields.get("Paper and place", ""))
            lines.append(f"| [{script.file.stem}]({link}.md) | {' | '.join(map(_cell, cells))} |")
        lines += ["", "```{toctree}", ":hidden:", "", *entries, "```"]
        parent = nodes.Element()
        self.state.nested_parse(StringList(lines, source=room), 0, parent)
        return parent.children


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("analyses", Analyses)
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True}
