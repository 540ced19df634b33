"""The result of an evaluation: a row for every arm, with paired intervals, as JSON, Markdown, LaTeX."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttreg_interp.data.annotated import Annotated
from ttreg_interp.errors import DataError
from ttreg_interp.evaluations.arms import Run
from ttreg_interp.evaluations.base import Evaluation, Scored
from ttreg_interp.evaluations.records import Records
from ttreg_interp.metrics.comparison import INTACT, Row
from ttreg_interp.metrics.intervals import Interval, controls_interval
from ttreg_interp.provenance import versions


@dataclass(frozen=True, eq=False)
class Result:
    """What every arm scored on the same images."""

    title: str
    """The evaluation, in words."""
    rows: tuple[Row, ...]
    """Arms in order, and each one's metrics in order."""
    n_images: Mapping[str, int]
    """Images measured, by split."""
    faults: Mapping[str, tuple[str, ...]]
    """Images and annotations left out, by split, with file, line and reason."""
    details: Mapping[str, Any]
    """By arm: every setting of a sweep, every seed."""
    config: Mapping[str, Any]
    """Protocol, data, arms, notes, versions and seed."""

    def __getitem__(self, key: tuple[str, str]) -> Row:
        """The row of (arm, metric).

        Raises:
            DataError: no such arm or metric; lists those there are.
        """
        for row in self.rows:
            if (row.arm, row.metric) == key:
                return row
        raise DataError(f"No row {key}. Arms: {self.arms}; metrics: {self.metrics}.")

    @property
    def arms(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(row.arm for row in self.rows))

    @property
    def metrics(self) -> list[str]:
        """In order."""
        return list(dict.fromkeys(row.metric for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "title": self.title,
            "rows": [row.to_dict() for row in self.rows],
            "n_images": dict(self.n_images),
            "faults": {split: list(faults) for split, faults in self.faults.items()},
            "details": dict(self.details),
            **self.config,
        }

    def to_markdown(self) -> str:
        """A line for every arm; differences from the intact model stand after the values."""
        header = ["arm"]
        for metric in self.metrics:
            header += [metric, "difference"]
        lines = [header, ["---"] * len(header), *([arm, *self._cells(arm)] for arm in self.arms)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def to_latex(self) -> str:
        """A booktabs table in the paper's form: one column a metric, value and interval."""
        head = " & ".join(["", *map(_escaped, self.metrics)])
        body = [
            " & ".join(
                [_escaped(arm), *(_latex(self[arm, metric].value) for metric in self.metrics)]
            )
            for arm in self.arms
        ]
        columns = "l" + "c" * len(self.metrics)
        lines = [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            rf"{head} \\",
            r"\midrule",
            *(rf"{line} \\" for line in body),
            r"\bottomrule",
            r"\end{tabular}",
        ]
        return "\n".join(lines)

    def save(self, folder: Path | str) -> None:
        """Write result.json, table.md and table.tex, each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        texts = {
            "result.json": json.dumps(self.to_dict(), indent=1),
            "table.md": str(self),
            "table.tex": self.to_latex(),
        }
        for name, text in texts.items():
            part = folder / f".{name}.part"
            part.write_text(text + "\n", encoding="utf-8")
            part.replace(folder / name)

    def _cells(self, arm: str) -> Iterator[str]:
        for metric in self.metrics:
            row = self[arm, metric]
            yield str(row.value)
            yield "" if row.difference is None else str(row.difference)

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {split} images" for split, n in self.n_images.items())
        left_out = sum(map(len, self.faults.values()))
        controls = " Random arms: mean and 2.5 to 97.5 percentile of their draws."
        warnings = [
            f"\n\nWarning ({arm}): {notes['warning']}"
            for arm, notes in self.config["notes"].items()
            if "warning" in notes
        ]
        return (
            f"{self.title}: {counts}; {left_out} left out.\n\n{self.to_markdown()}\n\n"
            "95 % bootstrap intervals over images; differences are paired, arm minus intact."
            f"{controls if any('draws' in row.value.method for row in self.rows) else ''}"
            f"{''.join(warnings)}"
        )


def scored(
    evaluation: Evaluation,
    data: Mapping[str, Annotated[Any]],
    runs: Sequence[Run],
    records: Mapping[str, Records],
    manifest: Mapping[str, Any],
    seed: int,
) -> Result:
    """Score the records of a whole run."""
    by_run = {run.name: evaluation.score(records, run, data) for run in runs}
    groups: dict[str, list[Scored]] = {}
    for run in runs:
        groups.setdefault(run.arm, []).append(by_run[run.name])
    rows = [
        row for arm, group in groups.items() for row in _rows(arm, group, groups[INTACT][0], seed)
    ]
    faults = {
        split: (*map(str, images.faults), *records[split].faults())
        for split, images in data.items()
    }
    return Result(
        title=evaluation.title,
        rows=tuple(rows),
        n_images={split: len(one.images()) for split, one in records.items()},
        faults=faults,
        details={name: dict(one.details) for name, one in by_run.items() if one.details},
        config={
            **manifest,
            "protocol": evaluation.source,
            "notes": _notes(evaluation, runs),
            "seed": seed,
            "versions": versions(),
        },
    )


def _notes(evaluation: Evaluation, runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Of the intact model, and of every other checkpoint."""
    first = {id(run.model): run for run in reversed(runs)}
    return {run.arm: dict(evaluation.notes(run.model)) for run in reversed(first.values())}


def _rows(arm: str, group: list[Scored], intact: Scored, seed: int) -> Iterator[Row]:
    for metric, base in intact.scores.items():
        scores = [one.scores[metric] for one in group]
        if len(scores) > 1:
            draws = [float(one.of(_all(one.n_images))) for one in scores]
            whole = float(base.of(_all(base.n_images)))
            yield Row(
                arm,
                metric,
                controls_interval(draws),
                controls_interval([draw - whole for draw in draws]),
            )
        else:
            difference = None if arm == INTACT else scores[0].minus(base, seed)
            yield Row(arm, metric, scores[0].interval(seed), difference)


def _all(n_images: int) -> Any:
    """Every image counts once."""
    import numpy as np

    return np.ones(n_images)


def _latex(value: Interval) -> str:
    number, _, ends = str(value).partition(" ")
    return f"${number}$ {{\\scriptsize ${ends}$}}"


def _escaped(text: str) -> str:
    for sign in "\\&%$#_{}":
        text = text.replace(sign, f"\\{sign}" if sign != "\\" else r"\textbackslash ")
    return text
