"""The result of `compare`: numbers of every arm, and the table that they make."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import DataError
from ttreg_interp.interventions import Intervention
from ttreg_interp.metrics.arm_metrics import ArmMetric
from ttreg_interp.metrics.intervals import Interval
from ttreg_interp.provenance import versions

INTACT = "intact"
"""The arm that every other is compared with: the model as it is."""

Arms: TypeAlias = Mapping[str, Intervention | Mapping[str, Intervention]]
"""Interventions by name; several under one name are draws of a control, summed up in one row."""


@dataclass(frozen=True)
class Row:
    """One metric of one arm."""

    arm: str
    """Which arm."""
    metric: str
    """Which metric."""
    value: Interval
    """Mean over images with its bootstrap interval; for a control mean and spread over draws."""
    difference: Interval | None
    """Arm minus intact: paired over images; for a control over draws. None for the intact arm, and
    for metrics that compare with it themselves."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        difference = None if self.difference is None else self.difference.to_dict()
        return {**vars(self), "value": self.value.to_dict(), "difference": difference}


@dataclass(frozen=True, eq=False)
class Comparison:
    """What every arm did with the same images."""

    model: str
    """Its spec or class."""
    weights_hash: str
    """Of the source."""
    arms: Arms
    """As given, after the intact one."""
    metrics: tuple[ArmMetric, ...]
    """What was measured."""
    per_image: Mapping[str, Mapping[str, Float[Tensor, " image"]]]
    """Arm (or 'control: draw'), then metric: one number for every image."""
    rows: tuple[Row, ...]
    """Arms in order, and each one's metrics in order."""
    n_images: int
    """On how many images."""
    batch_size: int
    """Images of one forward pass."""
    seed: int
    """Of the bootstrap."""
    blocks_run: float
    """Share of the blocks that all arms together ran; the others were shared."""

    def __getitem__(self, key: tuple[str, str]) -> Row:
        """The row of (arm, metric).

        Raises:
            DataError: no such arm or metric; lists those there are.
        """
        for row in self.rows:
            if (row.arm, row.metric) == key:
                return row
        raise DataError(
            f"No row {key}. Arms: {list(self.arms)}; metrics: {[m.name for m in self.metrics]}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Configuration and rows for JSON, without the numbers of single images."""
        return {
            "model": self.model,
            "weights_hash": self.weights_hash,
            "arms": {name: _described(arm) for name, arm in self.arms.items()},
            "metrics": [repr(metric) for metric in self.metrics],
            "rows": [row.to_dict() for row in self.rows],
            "n_images": self.n_images,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "blocks_run": self.blocks_run,
            "versions": versions(),
        }

    def to_markdown(self) -> str:
        """A table with a line for every arm; differences from the intact arm stand after the values."""
        header = ["arm"]
        for metric in self.metrics:
            header += [metric.name] if metric.against_intact else [metric.name, "difference"]
        lines = [[name, *self._cells(name)] for name in self.arms]
        widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
        rule = ["-" * width for width in widths]
        return "\n".join(
            "| " + " | ".join(map(str.ljust, line, widths)) + " |"
            for line in (header, rule, *lines)
        )

    def _cells(self, arm: str) -> Iterator[str]:
        for metric in self.metrics:
            row = self[arm, metric.name]
            yield str(row.value)
            if not metric.against_intact:
                yield "" if row.difference is None else str(row.difference)

    def __str__(self) -> str:
        controls = [
            f"{name}: mean and 2.5 to 97.5 percentile of {len(arm)} draws. "
            for name, arm in self.arms.items()
            if isinstance(arm, Mapping)
        ]
        return (
            f"{self.model}, {self.n_images} images\n\n{self.to_markdown()}\n\n"
            "Means with 95 % bootstrap intervals over images; differences are paired, arm minus "
            f"intact. {''.join(controls)}{self.blocks_run:.0%} of the arms' blocks were run, the "
            "others shared."
        )


def _described(arm: Intervention | Mapping[str, Intervention]) -> dict[str, Any]:
    if isinstance(arm, Intervention):
        return arm.to_dict()
    return {draw: one.to_dict() for draw, one in arm.items()}
