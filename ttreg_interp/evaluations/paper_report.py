"""The paper's tables from the results in a folder: one report, in Markdown and in LaTeX."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttreg_interp.evaluations.paper import Job, left_out_lines, listed_data, paper_list, set_folder
from ttreg_interp.evaluations.result import _escaped, _latex
from ttreg_interp.metrics.comparison import INTACT
from ttreg_interp.metrics.intervals import Interval

ARMS = {
    INTACT: "intact",
    "register": "+ test-time register",
    "trained registers": "trained registers",
    "zero": "register neurons zeroed",
    "bias": "zeroed, attention bias",
    "noise": "register neurons random",
    "random": "random neurons zeroed",
    "text-erase": "text filled with its mean",
    "text-move": "outliers moved onto the text",
    "text-random": "random neurons moved onto it",
}
"""What a line is called, in the order of the lines."""
_LISTED_AS = {"trained registers": "trained"}


@dataclass(frozen=True)
class Cell:
    """One number of a table."""

    value: Interval
    """With its interval."""
    difference: Interval | None
    """From the intact model, paired over images; None for the intact model."""
    published: float | None
    """In the paper, where it has this number."""


@dataclass(frozen=True)
class Line:
    """One arm of one model."""

    model: str
    """Which model."""
    arm: str
    """As results name it."""
    cells: tuple[Cell | None, ...]
    """One for every column; None where there is no result."""


@dataclass(frozen=True)
class Table:
    """One table of the paper."""

    number: str
    """In the paper, e.g. '5, 11'."""
    title: str
    """What it is about."""
    columns: tuple[str, ...]
    """Their names."""
    lines: tuple[Line, ...]
    """Models in order, and each one's arms."""
    notes: tuple[str, ...]
    """Images and what was left out, column by column."""

    def to_markdown(self) -> str:
        """Value, paired difference and the paper's number of every column."""
        header = ["model", "arm"]
        for column in self.columns:
            header += [column, "difference", "paper"]
        rows = [[line.model, ARMS.get(line.arm, line.arm), *_texts(line)] for line in self.lines]
        lines = [header, ["---"] * len(header), *rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"## Table {self.number}: {self.title}\n\n{body}\n\n" + "\n".join(self.notes)

    def to_latex(self) -> str:
        """A booktabs table: one column for each of the paper's, the paired difference below the value."""
        body = []
        for place, line in enumerate(self.lines):
            if place and line.model != self.lines[place - 1].model:
                body.append(r"\midrule")
            name = line.model if line.arm == INTACT else rf"\quad {ARMS.get(line.arm, line.arm)}"
            cells = " & ".join("--" if cell is None else _stacked(cell) for cell in line.cells)
            body.append(rf"{_named(name)} & {cells} \\")
        lines = [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{_escaped(f'{self.title} (table {self.number} of arXiv 2506.08010)')}. "
            r"95\,\% bootstrap intervals over images; $\Delta$: arm minus intact, paired.}",
            rf"\begin{{tabular}}{{l{'c' * len(self.columns)}}}",
            r"\toprule",
            rf" & {' & '.join(map(_escaped, self.columns))} \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines)


def tables(out: Path) -> list[Table]:
    """Every table of the paper of which there is a result below the folder."""
    by_number: dict[str, list[dict[str, Any]]] = {}
    for entry in paper_list()["evaluations"]:
        by_number.setdefault(entry["table"], []).append(entry)
    made = (_table(out, number, entries) for number, entries in by_number.items())
    return [table for table in made if table.lines]


def save(found: Sequence[Table], ending: str, out: Path) -> str:
    """Write report.md and report.tex, each whole or not at all.

    Args:
        found: of `tables`.
        ending: what was left out, what failed and what is missing, as Markdown.
        out: folder.

    Returns:
        The report as Markdown.
    """
    head = (
        "# Evaluations of arXiv 2506.08010\n\n95 % bootstrap intervals over images; differences are "
        "paired, arm minus intact. Random arms: mean and 2.5 to 97.5 percentile of their draws."
    )
    markdown = "\n\n".join([head, *(table.to_markdown() for table in found), ending]).strip()
    latex = "% needs \\usepackage{booktabs}\n" + "\n\n".join(table.to_latex() for table in found)
    for name, text in (("report.md", markdown), ("report.tex", latex)):
        part = out / f".{name}.part"
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(out / name)
    return markdown


def ending(found: Sequence[Job], failed: Mapping[str, str]) -> str:
    """What did not run, counted, and why, as Markdown.

    Args:
        found: of `jobs`.
        failed: folder -> error, of `run_all`.
    """
    missing = [job for job in found if job.missing]
    lines = left_out_lines([job for job in found if not job.missing])
    if failed:
        lines += ["", f"Failed: {len(failed)}. Repeat the command to go on with them."]
        lines += [f"- {folder}: {error}" for folder, error in failed.items()]
    if missing:
        lines += ["", f"Not run for want of data, weights or neurons: {len(missing)}."]
        lines += [f"- table {job.table}, {job.name}, {job.model}: {'; '.join(job.missing)}" for job in missing]  # fmt: skip
    return "\n".join(lines).strip()


def _table(out: Path, number: str, entries: Sequence[Mapping[str, Any]]) -> Table:
    results = [dict(_results(out, entry)) for entry in entries]
    names = [name for entry in entries for name in entry["models"]]
    names += sorted({name for found in results for name in found})
    lines = [line for name in dict.fromkeys(names) for line in _lines(name, entries, results)]
    columns = [title for entry in entries for title in entry["columns"].values()]
    notes = [
        f"{next(iter(entry['columns'].values()))}, {_title(name, result)}: {_counts(result)}."
        for entry, found in zip(entries, results, strict=True)
        for name, result in found.items()
    ]
    title = next(entry["title"] for entry in entries if "title" in entry)
    return Table(number, title, tuple(columns), tuple(lines), tuple(f"- {note}" for note in notes))


def _results(out: Path, entry: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Model, as its folder is called, and result; of several the one without arms left out."""
    data = {split: listed_data(name)["spec"] for split, name in entry["data"].items()}
    folder = out / set_folder(entry["table"], entry["name"], data)
    seen: dict[str, dict[str, Any]] = {}
    for file in sorted(folder.glob("*/result.json"), key=lambda file: len(file.parent.name)):
        result = json.loads(file.read_text(encoding="utf-8"))
        seen.setdefault(file.parent.name.partition(".without-")[0], result)
    yield from seen.items()


def _lines(
    name: str, entries: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]
) -> Iterator[Line]:
    own = [found.get(name) for found in results]
    arms = {row["arm"] for result in own if result for row in result["rows"]}
    order = {arm: place for place, arm in enumerate(ARMS)}
    for arm in sorted(arms, key=lambda arm: (order.get(arm, len(order)), arm)):
        title = next(_title(name, result) for result in own if result)
        cells = [
            _cell(result, arm, place, column, entry.get("published", {}).get(name, {}))
            for entry, result in zip(entries, own, strict=True)
            for place, column in enumerate(entry["columns"])
        ]
        yield Line(title, arm, tuple(cells))


def _cell(
    result: Mapping[str, Any] | None,
    arm: str,
    place: int,
    column: str,
    published: Mapping[str, Sequence[float]],
) -> Cell | None:
    for row in [] if result is None else result["rows"]:
        if row["arm"] == arm and row["metric"].startswith(column):
            difference = row["difference"] and Interval(**row["difference"])
            known = published.get(_LISTED_AS.get(arm, arm))
            return Cell(Interval(**row["value"]), difference, known[place] if known else None)
    return None


def _title(name: str, result: Mapping[str, Any]) -> str:
    listed = paper_list()["models"].get(name)
    return listed["title"] if listed else result["arms"][INTACT]["model"].split("@")[0]


def _counts(result: Mapping[str, Any]) -> str:
    images = ", ".join(f"{n} {split} images" for split, n in result["n_images"].items())
    return f"{images}, {sum(map(len, result['faults'].values()))} left out"


def _texts(line: Line) -> Iterator[str]:
    for cell in line.cells:
        if cell is None:
            yield from ("-", "", "")
        else:
            yield str(cell.value)
            yield "" if cell.difference is None else str(cell.difference)
            yield "" if cell.published is None else f"{cell.published:g}"


def _stacked(cell: Cell) -> str:
    value = _latex(cell.value)
    if cell.difference is None:
        return value
    return rf"\shortstack{{{value} \\ {{\scriptsize $\Delta$}} {_latex(cell.difference)}}}"


def _named(name: str) -> str:
    quad, found, rest = name.partition(r"\quad ")
    return rf"\quad {_escaped(rest)}" if found else _escaped(quad)
