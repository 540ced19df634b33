"""`{scripts} FOLDER`: what each script of a folder asks, its command and what to expect.

It is the head of the script itself, so that page and script cannot differ.
"""

import ast
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]


class Scripts(SphinxDirective):
    """A section a script."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Name, first line as a paragraph, the rest as it stands."""
        found = []
        for file in sorted((ROOT / self.arguments[0]).glob("*.py")):
            text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
            if file.stem.startswith("_") or text is None:
                continue
            head, _, rest = text.partition("\n")
            name = str(file.relative_to(ROOT))
            section = nodes.section(ids=[nodes.make_id(name)])
            section += [nodes.title("", name), nodes.paragraph("", head)]
            if rest.strip():
                section += nodes.literal_block(rest.strip(), rest.strip(), language="text")
            found.append(section)
        return found


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("scripts", Scripts)
    return {"parallel_read_safe": True}
