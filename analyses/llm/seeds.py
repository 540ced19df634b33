"""The testbed language model over seeds, attention kernels and optimisers.

Paper and place: arXiv 2410.13835, sections 2 and 3 (Bigram-Backcopy, ReLU attention, SGD); arXiv 2410.10781, \
section 7 (kernels).
Question: do sink, drained value and norm come with every seed, kernel and optimiser, and what does the model lose \
without the sink, or with a register in its place?
Command: python -m analyses.llm.seeds --out OUT
Runtime: 2 s on one CPU core; the runs themselves (`ttreg_interp.testbed.language_train`) about 100 s each.
Expect: softmax: a selective sink and a drained value, no massive activation; k', v' take the sink's place in full, \
a register with the neurons moved nearly so; kernels that may attend to nothing have no sink.
In the paper: 1 to 3 layers, one seed: sink and drain with softmax, none with ReLU attention; no residual peak with SGD.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import sqrt
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from analyses._figures import COLUMN, bars, panels
from analyses._run import Findings, main
from analyses.llm._bench import markdown
from ttreg_interp.errors import DataError
from ttreg_interp.metrics.intervals import Interval
from ttreg_interp.testbed.language import SHIPPED

Run = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Training runs, as `ttreg_interp.testbed.language_train --history FILE` writes them."""

    out: Path
    """Folder for result.json, summary.md and figures."""
    histories: Path = SHIPPED / "histories.jsonl"
    """One JSON object a run."""
    steps: int = 2500
    """Runs of so many updates on the in-context task."""


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean with Student's t interval.

    Raises:
        DataError: fewer than two seeds.
    """
    from scipy.stats import t

    n = len(values)
    if n < 2:
        raise DataError(f"Found {n} seeds; an interval over seeds takes two or more.")
    mean = sum(values) / n
    error = sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    half = float(t.ppf(0.975, n - 1)) * error
    return Interval(mean, mean - half, mean + half, 0.95, "Student's t over seeds", n)


def read(config: Config) -> dict[tuple[str, str], list[Run]]:
    """Runs by (kernel, optimiser), in the order of their seeds."""
    lines = config.histories.read_text(encoding="utf-8").splitlines()
    runs = [
        run
        for run in map(json.loads, lines)
        if run["config"]["steps"] == config.steps and run["config"]["task"]["in_context"]
    ]
    if not runs:
        raise DataError(f"No run of {config.steps} updates in {config.histories}.")

    def kind(run: Run) -> tuple[str, str]:
        return run["config"]["kernel"], run["config"]["optimiser"]

    ordered = sorted(runs, key=lambda run: (kind(run), run["config"]["seed"]))
    return {key: list(group) for key, group in groupby(ordered, kind)}


def sink(last: Run) -> tuple[int, float]:
    """Layer and attention of the strongest sink at the end of a run."""
    layer = max(range(len(last["sink_free"])), key=lambda at: last["sink_free"][at])
    return layer, last["sink_free"][layer]


def seed_rows(runs: Iterable[Run]) -> Iterator[tuple[str, ...]]:
    """What came of every seed: copying, sink, drain, norm."""
    for run in runs:
        last = run["history"][-1]
        layer, attention = sink(last)
        block = max(range(len(last["norm_ratio"])), key=lambda at: last["norm_ratio"][at])
        yield (
            str(run["config"]["seed"]),
            f"{last['loss_free']:.3f}",
            f"{last['loss_certain']:.3f}",
            f"{last['accuracy_certain']:.3f}",
            " ".join(f"{value:.2f}" for value in last["sink_free"]),
            f"{attention:.2f} ({layer})",
            f"{last['sink_certain'][layer]:.3f}",
            f"{last['drain'][layer]:.2f}",
            f"{last['norm_ratio'][block]:.2f} ({block - 1 if block else 'embedding'})",
        )


SEED_COLUMNS = (
    "seed",
    "loss, free",
    "loss, certain",
    "accuracy, certain",
    "sink by layer",
    "largest (layer)",
    "there, from active triggers",
    "value of BOS / median",
    "norm of BOS / median (after block)",
)


def arm_changes(runs: Sequence[Run]) -> dict[str, dict[str, Interval]]:
    """Over seeds: change of both losses against the intact model of the same seed; sinks and norms."""
    names = [name for name in runs[0]["arms"] if all(name in run["arms"] for run in runs)]

    def over(name: str, field: str, less_intact: bool) -> Interval:
        rows = [run["arms"] for run in runs]
        return over_seeds([row[name][field] - less_intact * row["intact"][field] for row in rows])

    fields = {"loss_free": True, "loss_certain": True, "sink": False, "sink_added": False}
    fields |= {"norm": False, "norm_added": False}
    return {
        name: {field: over(name, field, less) for field, less in fields.items()} for name in names
    }


ARM_COLUMNS = (
    "arm",
    "change of loss, free",
    "change of loss, certain",
    "sink: BOS",
    "added token",
    "norm: BOS",
    "added token",
)


def kernel_rows(runs: Mapping[tuple[str, str], Sequence[Run]]) -> Iterator[tuple[str, ...]]:
    """A line a kernel and optimiser: how many seeds copy, and the range over seeds of the rest."""
    for (kernel, optimiser), some in runs.items():
        last = [run["history"][-1] for run in some]
        learned = sum(row["accuracy_certain"] > 0.9 for row in last)
        rate = some[0]["config"]["learning_rate"]
        yield (
            f"{kernel}, {optimiser}{f' (learning rate {rate:g})' if rate else ''}",
            f"{learned} of {len(last)}",
            _range(row["loss_free"] for row in last),
            _range(row["loss_certain"] for row in last),
            _range(sink(row)[1] for row in last),
            _range(row["drain"][sink(row)[0]] for row in last),
            _range(max(row["norm_ratio"][1:]) for row in last),
        )


KERNEL_COLUMNS = (
    "kernel, optimiser",
    "seeds that copy",
    "loss, free",
    "loss, certain",
    "largest sink",
    "value of BOS there / median",
    "largest norm of BOS / median",
)


def _range(values: Iterable[float]) -> str:
    low, *_, high = sorted([*values] * 2)
    return f"{low:.2f} to {high:.2f}" if f"{low:.2f}" != f"{high:.2f}" else f"{low:.2f}"


def analyse(config: Config) -> Findings:
    """Three tables: seeds of the shipped recipe, its arms, all kernels."""
    runs = read(config)
    shipped = runs["softmax", "adam"]
    changes = arm_changes(shipped)
    arm_rows = [(name, *row.values()) for name, row in changes.items()]
    sinks = [sink(run["history"][-1])[1] for run in shipped]
    words = [
        f"Softmax, Adam, {config.steps} updates:",
        markdown(SEED_COLUMNS, list(seed_rows(shipped))),
        f"Arms in the layer of the sink, mean and 95 % interval (Student's t) over {len(shipped)} seeds:",
        markdown(ARM_COLUMNS, arm_rows),
        "All kernels, smallest to largest over seeds:",
        markdown(KERNEL_COLUMNS, list(kernel_rows(runs))),
    ]
    register, cut = changes["sink hidden, register"], changes["sink hidden"]
    return Findings(
        headline=(
            f"sink above .5 in {sum(value > 0.5 for value in sinks)} of {len(sinks)} seeds; hidden, loss "
            f"{cut['loss_free'].estimate:+.3f}, with a register {register['loss_free'].estimate:+.3f}"
        ),
        words="\n\n".join(words),
        numbers={
            "arms": changes,
            "sinks": over_seeds(sinks),
            "by_kernel": {
                ", ".join(kind): [run["history"][-1] for run in some] for kind, some in runs.items()
            },
        },
        figures={"figure": _figure(changes)},
        facts={"runs": {", ".join(kind): len(some) for kind, some in runs.items()}},
    )


def _figure(changes: Mapping[str, Mapping[str, Interval]]) -> Figure:
    figure, ((axes,),) = panels(1, 1, height=0.4 + 0.17 * len(changes), width=COLUMN * 1.5)
    bars(axes, {name: row["loss_free"] for name, row in changes.items()})
    axes.set_xlabel("change of loss after words that are no triggers, nats")
    return figure


if __name__ == "__main__":
    main(globals())
