"""The result of `causal_table`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ttreg_interp.errors import DataError
from ttreg_interp.interventions import NeuronSet
from ttreg_interp.metrics.comparison import Comparison
from ttreg_interp.metrics.intervals import Interval, McNemar


@dataclass(frozen=True)
class Test:
    """One arm against the intact model or against random neurons, by one metric."""

    __test__ = False  # pytest: not a test class

    arm: str
    """Which arm."""
    metric: str
    """Which metric."""
    against: str
    """'intact', or 'random': the mean over the draws of the control, image by image."""
    difference: Interval
    """Mean over images of arm minus other, paired."""
    p_value: float
    """Two-sided, by sign flips."""
    q_value: float
    """Adjusted over all tests of the table (Benjamini-Hochberg)."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "difference": self.difference.to_dict()}


@dataclass(frozen=True, eq=False)
class CausalTable:
    """What each arm did, how sure that is, and what random neurons did."""

    comparison: Comparison
    """Values of all arms, controls included, with intervals."""
    tests: tuple[Test, ...]
    """Arms in order, metrics in order, against the intact model and against random neurons."""
    cka: Mapping[str, Interval]
    """Arm or control -> linear CKA of its outputs with the intact ones; for a control the spread
    over draws."""
    mcnemar: Mapping[str, McNemar]
    """Arm -> its top-1 against the intact model's (a: the arm); empty without labels."""
    neurons: NeuronSet
    """The neurons."""
    n_controls: int
    """Draws of each control."""

    def __getitem__(self, key: tuple[str, str, str]) -> Test:
        """The test of (arm, metric, against).

        Raises:
            DataError: no such test; lists arms and metrics.
        """
        for test in self.tests:
            if (test.arm, test.metric, test.against) == key:
                return test
        arms = list(dict.fromkeys(test.arm for test in self.tests))
        metrics = list(dict.fromkeys(test.metric for test in self.tests))
        raise DataError(
            f"No test {key}. Arms: {arms}; metrics: {metrics}; against 'intact' (where the metric "
            "does not compare with it itself) or 'random'."
        )

    def differing(self, rate: float = 0.05) -> tuple[Test, ...]:
        """Tests that differ at this false discovery rate."""
        return tuple(test for test in self.tests if test.q_value < rate)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the numbers of single images."""
        return {
            "comparison": self.comparison.to_dict(),
            "tests": [test.to_dict() for test in self.tests],
            "cka": {name: value.to_dict() for name, value in self.cka.items()},
            "mcnemar": {name: value.to_dict() for name, value in self.mcnemar.items()},
            "neurons": self.neurons.to_dict(),
            "n_controls": self.n_controls,
        }

    def to_markdown(self) -> str:
        """A line for every arm: values; a star where it differs from random neurons, q < 0.05."""
        metrics = [metric.name for metric in self.comparison.metrics]
        header = ["arm", *metrics, "CKA of the output"]
        if self.mcnemar:
            header += ["top-1 won : lost, McNemar p"]
        starred = {(t.arm, t.metric) for t in self.differing() if t.against == "random"}
        lines = []
        for arm in self.comparison.arms:
            values = [
                f"{self.comparison[arm, metric].value}{' *' * ((arm, metric) in starred)}"
                for metric in metrics
            ]
            line = [arm, *values, str(self.cka[arm])]
            if self.mcnemar:
                test = self.mcnemar.get(arm)
                line += [
                    "" if test is None else f"{test.a_only} : {test.b_only}, {test.p_value:.2g}"
                ]
            lines.append(line)
        rows = [header, ["---"] * len(header), *lines]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)

    def __str__(self) -> str:
        return (
            f"{self.comparison.model}, {self.comparison.n_images} images, "
            f"{self.neurons.describe()}\n\n{self.to_markdown()}\n\n"
            "Means with 95 % bootstrap intervals over images; random rows: mean and 2.5 to 97.5 "
            f"percentile of {self.n_controls} draws. A star: differs from random neurons under the "
            "same treatment, paired sign-flip test, q < 0.05 over the whole table."
        )
