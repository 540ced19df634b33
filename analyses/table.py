"""The table of docs/analyses/paper.md, from the results of two runs of a room.

A script without a result in either has no line.

Command: python -m analyses.table --embedded OUT_EMBEDDED --real OUT_REAL --page docs/analyses/paper.md
"""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from analyses._run import Header, scripts

_MARK = "<!-- made by python -m analyses.table; do not edit below -->"


@dataclass(frozen=True)
class Config:
    """Two folders that `python -m analyses ROOM --out FOLDER` wrote."""

    embedded: Path
    """Results of the embedded model."""
    real: Path
    """Results of a real model."""
    page: Path
    """Markdown page; everything below its mark is written anew."""
    room: str = "paper"
    """Folder under analyses/."""


def cell(folder: Path) -> str:
    """The headline of a result, fit for a table."""
    file = folder / "result.json"
    if not file.exists():
        return "-"
    return json.loads(file.read_text(encoding="utf-8"))["headline"].replace("|", "\\|")


def setting(folder: Path) -> str:
    """Model, images and neurons of a folder's results."""
    for file in sorted(folder.glob("*/result.json")):
        facts = json.loads(file.read_text(encoding="utf-8"))["facts"]
        if "outliers" not in facts:
            continue
        model = facts["model"].split("@")[0]
        neurons = ", ".join(f"{layer}:{n}" for layer, ns in facts["neurons"].items() for n in ns)
        origin, size = facts["neurons_from"], " x ".join(map(str, facts["image_size"]))
        return (
            f"`{model}`, weights {facts['weights_sha256'][:12]}, neurons {neurons} ({origin}), "
            f"{size} pixels, images {facts['images_sha256'][:12]}. {facts['outliers']}"
        )
    return "no results."


def build(config: Config) -> str:
    """The table."""
    lines = [
        f"Embedded: {setting(config.embedded)}",
        "",
        f"Real: {setting(config.real)}",
        "",
        "| paper and place | script | embedded model | real model | in the paper |",
        "|---|---|---|---|---|",
    ]
    for name, module in scripts(config.room):
        header = Header.of(module.__doc__).fields
        place, paper = header["Paper and place"], header.get("In the paper", "-")
        here, there = cell(config.embedded / name), cell(config.real / name)
        if (here, there) == ("-", "-"):
            continue
        lines.append(f"| {place} | `{name}` | {here} | {there} | {paper} |")
    return "\n".join(lines)


def main(config: Config) -> None:
    """Write the page."""
    above = config.page.read_text(encoding="utf-8").split(_MARK)[0] if config.page.exists() else ""
    config.page.write_text(f"{above}{_MARK}\n\n{build(config)}\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
