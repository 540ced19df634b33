"""`{public_names}`: what `import ttreg_interp as tt` offers, each with its first sentence and a link."""

import inspect
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


def rows() -> list[tuple[str, str, str]]:
    """Name, dotted path of its documentation, first sentence."""
    import ttreg_interp

    found = []
    for name in ttreg_interp.__all__:
        value = getattr(ttreg_interp, name)
        if name != "__version__":
            first = (inspect.getdoc(value) or "").split("\n\n")[0]
            path = f"{value.__module__}.{value.__qualname__}"
            found.append((name, path, " ".join(first.split())))
    return found


class PublicNames(SphinxDirective):
    """A table of them."""

    def run(self) -> list[nodes.Node]:
        """In the order of the package."""
        lines = ["| `tt.` | |", "|---|---|"]
        for name, path, first in rows():
            said = first.replace("|", "\\|")
            lines.append(f"| {{py:obj}}`{name} <{path}>` | {said} |")
        parent = nodes.Element()
        self.state.nested_parse(StringList(lines, source="public names"), 0, parent)
        return parent.children


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("public_names", PublicNames)
    return {"parallel_read_safe": True}
