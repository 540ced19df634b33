"""`{commands}`: what `ttreg COMMAND --help` says, of every sub-command.

The text is asked for when the docs are built, so that page and program cannot differ.
"""

import contextlib
import io
import os
from textwrap import wrap
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

WIDTH = 88
"""Columns of a help text."""


def help_of(command: str) -> str:
    """As a terminal of `WIDTH` columns shows it."""
    from ttreg_interp.cli import main

    said, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(WIDTH)
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([command, "--help"])
    finally:
        del os.environ["COLUMNS"]
        if columns is not None:
            os.environ["COLUMNS"] = columns
    lines = said.getvalue().strip().split("\n")
    return "\n".join(part for line in lines for part in wrap(line, WIDTH) or [""])


class Commands(SphinxDirective):
    """A section a sub-command."""

    def run(self) -> list[nodes.Node]:
        """In the order of `ttreg --help`."""
        from ttreg_interp.cli import COMMANDS

        sections = []
        for command in COMMANDS:
            title = f"ttreg {command}"
            section = nodes.section(ids=[nodes.make_id(title)])
            text = help_of(command)
            section += [nodes.title("", title), nodes.literal_block(text, text, language="text")]
            sections.append(section)
        return sections


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}
