"""Docstrings as reStructuredText: what is Markdown in them, and formulas set apart by indentation.

Runs before napoleon, which reads the sections (Args, Returns, ...).
"""

import re
from collections.abc import Iterator
from itertools import groupby, pairwise
from typing import Any

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Source", "Example", "Examples")
SECTION = re.compile(rf"^({'|'.join(SECTIONS)}):")
CODE_AND_LETTER = re.compile(r"(`[^`\n]+`)(?=[a-z])")
VERBATIM = re.compile(r"(``?[^`]+``?)|\$\$([^$]+)\$\$|\$([^$]+)\$")


def to_rst(lines: list[str]) -> list[str]:
    """A Google-style docstring with code, tables and mathematics that docutils reads."""
    start = next((i for i, line in enumerate(lines) if SECTION.match(line)), len(lines))
    return [*_prose(lines[:start]), *_sections(lines[start:])]


def _prose(lines: list[str]) -> Iterator[str]:
    """Text before the first section: indented blocks are formulas, bars make tables."""
    for kind, group in groupby(lines, _kind):
        block = list(group)
        if kind == "text":
            yield from _text(block)
        else:
            indent = "    " if kind == "table" else ""
            yield from ("", "::", "", *(indent + line for line in block), "")


def _kind(line: str) -> str:
    if line.startswith("|"):
        return "table"
    return "formula" if line.startswith("    ") else "text"


def _sections(lines: list[str]) -> Iterator[str]:
    """Sections; doctests in them stay as they are."""
    starts = [i for i, line in enumerate(lines) if SECTION.match(line)]
    for start, end in pairwise([*starts, len(lines)]):
        section = lines[start:end]
        yield from section if section[0].startswith("Example") else _text(section)


def _text(lines: list[str]) -> list[str]:
    """Text with code left alone, $mathematics$ as roles, and the rest escaped."""
    text, found, end = CODE_AND_LETTER.sub(r"\1\\ ", "\n".join(lines)), [], 0
    for match in VERBATIM.finditer(text):
        found.append(_escaped(text[end : match.start()]))
        formula = " ".join((match[2] or match[3] or "").split())
        found.append(f":math:`{formula}`" if formula else match[0])
        end = match.end()
    return "".join([*found, _escaped(text[end:])]).split("\n")


def _escaped(text: str) -> str:
    """Without the characters that mean something to docutils only."""
    text = re.sub(r"(?<![\\*])\*(?=\S)", r"\\*", text)
    text = re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", text)
    return text.replace("|", r"\|")


def _process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    # Of an attribute, napoleon would take what stands before a colon in line 1 for its type.
    first = ["\\"] if what in ("attribute", "data", "property") else []
    lines[:] = [*first, *to_rst(list(lines))]


def setup(app: Any) -> dict[str, bool]:
    """Register with Sphinx, before napoleon."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", _process, priority=100)
    return {"parallel_read_safe": True}
