"""Writes docs/reference/interventions.md from the docstrings: `python -m tests.interventions.reference`."""

import ast
import inspect
import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import ttreg_interp.interventions as package
from ttreg_interp.interventions import Intervention, Selector, measure
from ttreg_interp.interventions.value import Value

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "interventions.md"

HEAD = """\
# Interventions

<!-- Written by `python -m tests.interventions.reference` from the docstrings; edit those. -->

An intervention is a value that says what to do to a forward pass: a frozen dataclass with plain fields.
All of them are in `ttreg_interp.interventions`.

```python
import ttreg_interp as tt
from ttreg_interp import interventions as act

clean = tt.TestTimeRegister({5: [599]})
both = clean + act.KnockoutAttention("cls", "patches", layers=(11,))  # first one, then the other
with model.intervened(both):  # every forward inside
    output, cache = model.run_with_cache(pixels)

both.save("both.json")
assert act.Intervention.load("both.json") == both
model.run_with_hooks(pixels, fwd_hooks=clean.fwd_hooks(model))  # plain TransformerLens hooks
```

- `a + b` is a, then b; `a + Empty()` is a. Pairs that would undo each other are refused when they are
  composed: neurons moved twice, or moved and overwritten.
- Nothing is edited in place; leaving the context restores the model, also after an exception.
- Each image of a batch is edited as if it were alone. Positions, boxes, masks and rows may also be given
  once for every image: a tuple of tuples, or a mask with an `image` axis.
- `model.intervened` counts the hooks that ran. One that did not run where it should raises.
- Everything works under gradients, autocast, half and double precision. Stored tensors are held as they
  are, so that a gradient reaches k' and v'.
- Fields that select tokens take a selector (below), or in short a part's name (`"cls"`), rows `(0, 5)`,
  `(row, column)` pairs of patches, or a boolean mask on the patch grid.

Refusals are `ttreg_interp.errors.InterventionError`, on making, composing or entering; the message says
what to do instead.
"""

GROUPS = {
    "registers": "Registers",
    "trained_registers": "Trained registers",
    "neurons": "Neurons",
    "move": "Neurons moved",
    "attention": "Keys of attention",
    "patterns": "Patterns and heads",
    "activations": "Any activation",
    "tokens": "Tokens",
    "base": "Nothing, and several",
    "selector": "Selectors: parts and combinations",
    "places": "Selectors: places",
    "selectors": "Selectors: found in the run",
}
"""Modules, in the order of the page."""

MEASURED = """\
## What is measured for them

Functions that fill in fields from images; take others than those to be intervened on.
"""

SECTION = re.compile(r"^(Args|Returns|Raises|Source|Example):[ \n]", re.MULTILINE)


def kinds(root: type[Value]) -> list[type[Value]]:
    """Every concrete kind of the package below a root, in the order in which they are defined."""
    return [
        kind
        for kind in Value.kinds.values()
        if issubclass(kind, root) and not inspect.isabstract(kind)
        if kind.__module__.startswith(package.__name__)
    ]


def page() -> str:
    """The whole page."""
    listed = sorted((*kinds(Intervention), *kinds(Selector)), key=_place)
    parts = [HEAD, _summary(listed)]
    for name, title in GROUPS.items():
        module = f"{package.__name__}.{name}"
        said = inspect.cleandoc(sys.modules[module].__doc__ or "")
        parts += [f"## {title}\n", said]
        parts += [_kind(kind) for kind in listed if kind.__module__ == module]
    functions = [
        function
        for name, function in inspect.getmembers(measure, inspect.isfunction)
        if name in package.__all__ and function.__module__ == measure.__name__
    ]
    parts += [MEASURED, *map(_function, functions)]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _place(kind: type[Value]) -> int:
    return list(GROUPS).index(kind.__module__.rpartition(".")[2])


def _summary(listed: list[type[Value]]) -> str:
    rows = [
        f"| [`{kind.__name__}`](#{kind.__name__.lower()}) | {_first(kind)} |" for kind in listed
    ]
    return "\n".join(["| kind | what it does |", "|---|---|", *rows]) + "\n"


def _first(kind: type) -> str:
    """First sentence, without the formula that may follow."""
    text = " ".join(_sections(kind)[""].partition("\n\n")[0].split())
    return re.split(r"(?<=[\w)\]`])\.(?: |$)", text)[0].removesuffix(":").replace("|", "\\|")


def _kind(kind: type[Value]) -> str:
    sections = _sections(kind)
    parts = [f"### {kind.__name__}\n", _formulas(sections[""])]
    if "Source" in sections:
        parts.append(f"Source: {sections['Source']}\n")
    parts.append(_fields(kind))
    refused = [
        " ".join(_sections(base)["Raises"].partition(": ")[2].split()).rstrip(".")
        for base in reversed(kind.__mro__)
        if issubclass(base, Value) and "Raises" in _sections(base)
    ]
    if refused:
        parts.append(f"Refused: {'; '.join(refused)}.\n")
    if "Example" in sections:
        parts.append(f"```python\n{sections['Example']}\n```\n")
    return "\n".join(parts)


def _function(function) -> str:
    sections = _sections(function)
    signature = re.sub(r"[a-z]\w*(\.\w+)*\.(?=[A-Z])", "", str(inspect.signature(function)))
    parts = [f"### {function.__name__}\n", f"`{function.__name__}{signature}`\n"]
    parts.append(_formulas(sections[""]))
    if "Args" in sections:
        parts.append(_arguments(sections["Args"]))
    if "Example" in sections:
        parts.append(f"```python\n{sections['Example']}\n```\n")
    return "\n".join(parts)


def _sections(thing) -> dict[str, str]:
    """Sections of a docstring; what stands before the first is under ''."""
    first, *rest = SECTION.split(inspect.cleandoc(thing.__doc__ or ""))
    bodies = [
        inspect.cleandoc(f"\n{body}" if "\n" in body.rstrip() else body) for body in rest[1::2]
    ]
    return {"": first.strip(), **dict(zip(rest[::2], bodies, strict=True))}


def _formulas(text: str) -> str:
    """Indented blocks as code."""
    return re.sub(
        r"\n\n((?: {4}.*\n?|\n(?= {4}))+)",
        lambda found: f"\n\n```\n{inspect.cleandoc(found[1])}\n```\n",
        text + "\n",
    )


def _fields(kind: type[Value]) -> str:
    said = {
        name: text for base in reversed(kind.__mro__) for name, text in _field_docs(base).items()
    }
    rows = []
    for field in fields(kind):  # type: ignore[arg-type]
        default = "needed" if field.default is MISSING else f"`{field.default!r}`"
        rows.append(f"| `{field.name}` | {default} | {said[field.name]} |")
    return "\n".join(["| field | default | |", "|---|---|---|", *rows]) + "\n" if rows else ""


def _field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a class, its own only."""
    if not issubclass(kind, Value) or kind is Value:
        return {}
    body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
    docs = {}
    for field, text in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            docs[field.target.id] = " ".join(text.value.value.split()).replace("|", "\\|")  # type: ignore[union-attr]
    return docs


def _arguments(text: str) -> str:
    entries = re.split(r"^(?=\w+: )", text, flags=re.MULTILINE)
    named = [" ".join(entry.split()).partition(": ") for entry in entries if entry.strip()]
    return "\n".join(f"- `{name}`: {said}" for name, _, said in named) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
