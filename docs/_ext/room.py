"""`{room} NAME`: the reference of one package of ttreg_interp, module by module.

New modules appear by themselves. Modules whose name starts with an underscore are left out. Each opens
with links to its public names.
"""

import ast
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

PACKAGE = Path(__file__).resolve().parents[2] / "ttreg_interp"


def modules(room: str) -> list[str]:
    """Dotted names of the public modules that define something public."""
    folder = PACKAGE / room
    if not folder.is_dir():
        return [f"ttreg_interp.{room}"]
    return [
        f"ttreg_interp.{room}.{file.stem}"
        for file in sorted(folder.glob("*.py"))
        if not file.stem.startswith("_") and _has_public_names(file)
    ]


def _has_public_names(file: Path) -> bool:
    return bool(public_names(file))


def public_names(file: Path) -> list[str]:
    """Functions and classes of a module, in its order."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return [
        node.name
        for node in body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]


class Room(SphinxDirective):
    """One room of the house."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A section a module."""
        sections = []
        for name in modules(self.arguments[0]):
            short = name.removeprefix("ttreg_interp.")
            section = nodes.section(ids=[nodes.make_id(name)])
            section += nodes.title("", short)
            text = [
                *_links(name),
                "```{eval-rst}",
                f".. automodule:: {name}",
                "   :members:",
                "```",
            ]
            self.state.nested_parse(StringList(text, source=name), 0, section)
            sections.append(section)
        return sections


def _links(module: str) -> list[str]:
    file = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    return [" · ".join(f"{{py:obj}}`~{module}.{name}`" for name in public_names(file)), ""]


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("room", Room)
    return {"parallel_read_safe": True}
