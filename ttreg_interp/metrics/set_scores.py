"""Numbers for a whole set of images, from what each image adds: means, mIoU, the best of a sweep.

A score is a function of how often each image counts, so that it can be resampled over images, and
two arms can be compared on the same resamples.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ttreg_interp.errors import DataError
from ttreg_interp.metrics._values import Values, as_values, check_paired
from ttreg_interp.metrics.intervals import (
    Interval,
    mean_interval,
    paired_difference,
    statistic_interval,
)

Numbers: TypeAlias = np.ndarray | np.floating
"""One number for every resample; a scalar where there is one."""


@dataclass(frozen=True, eq=False)
class SetScore(ABC):
    """A number for a set of images."""

    @property
    @abstractmethod
    def n_images(self) -> int:
        """How many images it rests on."""

    @abstractmethod
    def of(self, weights: np.ndarray) -> Numbers:
        """The number where image i counts weights[..., i] times; keeps the other axes."""

    def interval(self, seed: int = 0, level: float = 0.95) -> Interval:
        """The score with its bootstrap interval over images."""
        n = self.n_images
        return statistic_interval(
            lambda drawn, axis: self.of(multiplicity(drawn, n)), [np.arange(n)], seed, level
        )

    def minus(self, other: "SetScore", seed: int = 0, level: float = 0.95) -> Interval:
        """The difference to another arm's score, on the same resamples of the images they share.

        Raises:
            DataError: the other rests on another number of images.
        """
        n = _shared(self, other)

        def difference(drawn: np.ndarray, axis: int) -> Numbers:
            weights = multiplicity(drawn, n)
            return self.of(weights) - other.of(weights)

        return statistic_interval(difference, [np.arange(n)], seed, level)


@dataclass(frozen=True, eq=False)
class Mean(SetScore):
    """Mean over images.

    Example:
        >>> Mean([1.0, 0.0, 1.0, 1.0], scale=100).interval().estimate
        75.0
    """

    values: Values
    """One value per image."""
    scale: float | int = 1
    """Factor on the mean; 100 for per cent."""

    @property
    def n_images(self) -> int:
        """See SetScore."""
        return len(self.values)

    def of(self, weights: np.ndarray) -> Numbers:
        """See SetScore."""
        return self.scale * (weights @ as_values(self.values)) / weights.sum(axis=-1)

    def interval(self, seed: int = 0, level: float = 0.95) -> Interval:
        """The mean with its BCa interval."""
        return mean_interval(self.scale * as_values(self.values), seed, level)

    def minus(self, other: SetScore, seed: int = 0, level: float = 0.95) -> Interval:
        """The paired difference of two means."""
        if not isinstance(other, Mean):
            return super().minus(other, seed, level)
        mine, theirs = (one.scale * as_values(one.values) for one in (self, other))
        return paired_difference(mine, theirs, seed, level)


@dataclass(frozen=True, eq=False)
class Best(SetScore):
    """The highest of several settings' means: an oracle, chosen on the very images it is told of.

    Every resample chooses anew, so that the interval holds what choosing adds to the spread.

    Example:
        >>> Best(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])).interval().estimate
        0.66...
    """

    values: np.ndarray
    """[image, setting]."""
    scale: float | int = 1
    """Factor on the mean."""

    @property
    def n_images(self) -> int:
        """See SetScore."""
        return len(self.values)

    def of(self, weights: np.ndarray) -> Numbers:
        """See SetScore."""
        means = (weights @ self.values) / weights.sum(axis=-1, keepdims=True)
        return self.scale * means.max(axis=-1)


@dataclass(frozen=True, eq=False)
class Ratio(SetScore):
    """Sum of the parts over sum of the wholes, such as correct pixels over pixels."""

    part: Values
    """One value per image."""
    whole: Values
    """Of the same images; images with a larger whole weigh more."""
    scale: float | int = 1
    """Factor on the ratio."""

    @property
    def n_images(self) -> int:
        """See SetScore."""
        return len(self.part)

    def of(self, weights: np.ndarray) -> Numbers:
        """See SetScore."""
        part, whole = as_values(self.part), as_values(self.whole)
        check_paired(part, whole)
        return self.scale * (weights @ part) / (weights @ whole)


@dataclass(frozen=True, eq=False)
class MeanOfRuns(SetScore):
    """Mean over runs (seeds of a probe) of their scores on the same images."""

    runs: Sequence[SetScore]
    """One per run."""

    @property
    def n_images(self) -> int:
        """See SetScore."""
        return _shared(*self.runs)

    def of(self, weights: np.ndarray) -> Numbers:
        """See SetScore."""
        return np.mean([run.of(weights) for run in self.runs], axis=0)


def multiplicity(drawn: np.ndarray, n: int) -> np.ndarray:
    """How often each of n images was drawn: [..., draws] indices to [..., n] counts."""
    rows = drawn.astype(np.int64).reshape(-1, drawn.shape[-1])
    shifted = rows + n * np.arange(len(rows))[:, None]
    counts = np.bincount(shifted.ravel(), minlength=n * len(rows))
    return counts.reshape(*drawn.shape[:-1], n).astype(np.float64)


def _shared(*scores: SetScore) -> int:
    found = sorted({score.n_images for score in scores})
    if len(found) != 1:
        raise DataError(f"Scores of the same images are wanted; found runs of {found} images.")
    return found[0]
