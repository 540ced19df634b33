"""What every script shares: how it describes itself, what it finds, and what it writes.

A script has a header (its docstring), a `Config` with a folder `out`, and `analyse(config)`, which
returns `Findings`; `main` reads the command line, runs it and writes the folder.
"""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

from analyses._figures import style
from ttreg_interp.metrics.intervals import Interval
from ttreg_interp.provenance import versions

FIELDS = ("Paper and place", "Question", "Command", "Runtime", "Expect", "In the paper")
"""Lines of a header, in this order, after its first sentence; the last one may be missing."""


@dataclass(frozen=True)
class Header:
    """What a script says about itself."""

    title: str
    """First sentence."""
    fields: Mapping[str, str]
    """By the names of `FIELDS`."""

    @classmethod
    def of(cls, text: str | None) -> "Header":
        """The header of a docstring."""
        title, *rest = (text or "").strip().split("\n\n", 1)
        names = "|".join(FIELDS)
        found = re.split(rf"^({names}): ", rest[0] if rest else "", flags=re.MULTILINE)[1:]
        values = [" ".join(value.replace("\\\n", "").split()) for value in found[1::2]]
        return cls(" ".join(title.split()), dict(zip(found[::2], values, strict=True)))


@dataclass(frozen=True)
class Findings:
    """What came out."""

    headline: str
    """One line of numbers, for a table of all scripts."""
    words: str
    """What came out, in plain words; Markdown, so that tables may stand in it."""
    numbers: Mapping[str, Any]
    """Every number with its interval; numbers, strings, lists, mappings, tensors and Intervals."""
    figures: Mapping[str, Figure]
    """By file name, without suffix."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Model, images and neurons, with hashes."""


def write(config: Any, findings: Findings, seconds: float | None = None) -> Path:
    """Write result.json, summary.md and the figures (PNG and SVG) into `config.out`."""
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in asdict(config).items() if name != "out"}
    result = {
        "headline": findings.headline,
        "configuration": settings,
        "facts": dict(findings.facts),
        "versions": versions(),
        "seconds": seconds,
        "numbers": dict(findings.numbers),
    }
    (out / "result.json").write_text(json.dumps(plain(result), indent=1) + "\n", encoding="utf-8")
    (out / "summary.md").write_text(findings.words + "\n", encoding="utf-8")
    with style():
        for name, figure in findings.figures.items():
            figure.savefig(out / f"{name}.png", dpi=220)
            figure.savefig(out / f"{name}.svg", metadata={"Date": None})
    return out


def plain(value: Any) -> Any:
    """`value` as JSON has it."""
    match value:
        case Interval():
            return value.to_dict()
        case Tensor():
            return plain(value.tolist())
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case float():
            return value if torch.isfinite(torch.tensor(value)) else None
        case None | bool() | int() | str():
            return value
    return str(value)


def run(module: Any, config: Any) -> Findings:
    """Analyse and write."""
    began = time.perf_counter()
    with style():
        findings = module.analyse(config)
    write(config, findings, round(time.perf_counter() - began, 1))
    return findings


def main(script: Mapping[str, Any]) -> None:
    """The command line of a script; `main(globals())`."""
    module = _Script(script)
    config = tyro.cli(module.Config, description=script["__doc__"])
    print(run(module, config).words)


class _Script:
    """A running script, whose names are not those of an imported module."""

    def __init__(self, names: Mapping[str, Any]):
        self.Config: Callable[..., Any] = names["Config"]
        self.analyse: Callable[[Any], Findings] = names["analyse"]


def scripts(room: str) -> Iterator[tuple[str, ModuleType]]:
    """Name and module of every script of a room, in the order of their names."""
    for path in sorted((Path(__file__).parent / room).glob("[!_]*.py")):
        yield path.stem, import_module(f"analyses.{room}.{path.stem}")
