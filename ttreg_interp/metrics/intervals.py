"""Numbers with intervals, and the tests of paired differences between arms.

Every function takes one value per image (or per draw, or per hypothesis) as a list, an array or a
tensor on any device, and works in float64. Resampling is over images: values of the tokens of one
image are not independent, so reduce them to one value per image first.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import floor, log10
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import DataError
from ttreg_interp.metrics._resampling import RESAMPLES, Statistic, interval_ends, rows_at_once
from ttreg_interp.metrics._values import Values, as_truth, as_values, check_paired


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, and how both were made.

    Example:
        >>> str(Interval(0.8134, 0.7701, 0.8532, level=0.95, method="BCa bootstrap", n=400))
        '0.813 [0.770, 0.853]'
        >>> 0.8 in Interval(0.8134, 0.7701, 0.8532, level=0.95, method="BCa bootstrap", n=400)
        True
    """

    estimate: float
    """The statistic of the values as they are."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    level: float
    """Confidence level, 0.95 for a 95 % interval."""
    method: str
    """How the ends were found, with the resamples and the seed."""
    n: int
    """How many images (or draws) the interval rests on."""

    def __str__(self) -> str:
        style = _style(self.high - self.low, self.estimate)
        return f"{self.estimate:{style}} [{self.low:{style}}, {self.high:{style}}]"

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings for JSON; `Interval(**d)` restores it."""
        return asdict(self)


@dataclass(frozen=True)
class McNemar:
    """Two arms on the same images: where exactly one of them is right, and how unlikely that split is."""

    a_only: int
    """Images that only arm a has right."""
    b_only: int
    """Images that only arm b has right."""
    p_value: float
    """Two-sided exact binomial p-value of that split under even odds; 1 if the arms never differ."""
    n: int
    """Images in all."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class SignFlip:
    """A paired difference and its permutation p-value."""

    difference: float
    """Mean of a - b over images."""
    p_value: float
    """Two-sided: share of sign assignments with a mean at least as extreme."""
    method: str
    """Whether all sign assignments were enumerated, or how many were drawn with which seed."""
    n: int
    """Pairs."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings for JSON."""
        return asdict(self)


def mean_interval(values: Values, seed: int = 0, level: float = 0.95) -> Interval:
    """Mean over images with its bootstrap interval.

    The interval is bias-corrected and accelerated (BCa). Values that are all equal have no
    acceleration; they get the percentile interval, a single point, and `method` says so: such a
    point means "no spread was seen", not "no doubt is left".

    Args:
        values: one value per image, e.g. whether the image was classified correctly.
        seed: of the resampling.
        level: confidence level.

    Returns:
        The interval, in the unit of the values.

    Raises:
        DataError: fewer than two values, or NaN or infinite ones.

    Source:
        Efron, "Better bootstrap confidence intervals", 1987; computed by `scipy.stats.bootstrap`.

    Example:
        >>> str(mean_interval([True] * 40 + [False] * 10))
        '0.80 [0.68, 0.90]'
    """
    return _bootstrap((as_values(values),), np.mean, seed, level, "bootstrap")


def paired_difference(a: Values, b: Values, seed: int = 0, level: float = 0.95) -> Interval:
    """Mean of a - b over images, the pairs kept together, with its bootstrap interval.

    Args:
        a: one value per image under one arm.
        b: the same images, in the same order, under the other.
        seed: of the resampling.
        level: confidence level.

    Returns:
        The interval of mean(a - b); 0 outside it says that the arms differ.

    Raises:
        DataError: different lengths, fewer than two pairs, or NaN or infinite values.

    Example:
        >>> str(paired_difference([0.9, 0.8, 0.7, 0.9], [0.5, 0.4, 0.5, 0.6]))
        '0.33 [0.22, 0.40]'
    """
    differences = _differences(a, b)
    return _bootstrap((differences,), np.mean, seed, level, "paired bootstrap")


def statistic_interval(
    statistic: Statistic,
    columns: Sequence[Values],
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """A statistic that is not a mean over images, with its bootstrap interval.

    Args:
        statistic: takes the columns as arrays and `axis=`, the axis of the images, which it removes.
        columns: per image values of equal length; an image's values are resampled together.
        seed: of the resampling.
        level: confidence level.

    Returns:
        The interval of the statistic.

    Raises:
        DataError: no column, different lengths, fewer than two images, NaN or infinite values, or
            a statistic that is undefined on a resample.

    Example:
        >>> statistic_interval(np.median, [[1.0, 3.0, 2.0]]).estimate
        2.0
    """
    if not columns:
        raise DataError("Found no column of values; give at least one with a value per image.")
    data = tuple(as_values(column, f"column {place}") for place, column in enumerate(columns))
    for column in data[1:]:
        check_paired(data[0], column)
    return _bootstrap(data, statistic, seed, level, "bootstrap")


def ratio_interval(part: Values, whole: Values, seed: int = 0, level: float = 0.95) -> Interval:
    """Sum of the parts over sum of the wholes, such as correct pixels over pixels, with its interval.

    Args:
        part: one value per image.
        whole: of the same images; images with a larger whole weigh more.
        seed: of the resampling.
        level: confidence level.

    Returns:
        The interval of sum(part) / sum(whole).

    Raises:
        DataError: as `statistic_interval`; the wholes of a resample may all be 0.

    Example:
        >>> ratio_interval([1, 3, 2], [4, 4, 4]).estimate
        0.5
    """
    return statistic_interval(_ratio_of_sums, [part, whole], seed, level)


def controls_interval(values: Values, level: float = 0.95) -> Interval:
    """Mean and spread over draws of a random control: where single draws fall, not where their mean lies.

    Args:
        values: the metric under each draw, e.g. accuracy after zeroing matched random neurons.
        level: share of the draws between the ends (linear interpolation between draws).

    Returns:
        Mean of the draws, with the (1 - level)/2 and (1 + level)/2 percentiles of the draws.

    Raises:
        DataError: fewer than two draws, or NaN or infinite values.

    Example:
        >>> str(controls_interval([0.70, 0.69, 0.71, 0.70]))
        '0.700 [0.691, 0.709]'
    """
    draws = as_values(values)
    _check_level(level)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        float(draws.mean()), float(low), float(high), level, "percentiles of draws", draws.size
    )


def mcnemar(a_correct: Values, b_correct: Values) -> McNemar:
    """Exact McNemar test of two arms' correctness on the same images.

    p = 2 min(P(X <= a_only), P(X >= a_only)), at most 1, with X ~ Binomial(a_only + b_only, 1/2).

    Args:
        a_correct: whether arm a has each image right.
        b_correct: whether arm b has it right.

    Returns:
        The discordant counts and the two-sided p-value.

    Raises:
        DataError: different lengths, fewer than two images, or values other than 0 and 1.

    Source:
        McNemar 1947, in its exact form; `scipy.stats.binomtest`.

    Example:
        >>> test = mcnemar([1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0])
        >>> test.a_only, test.b_only, test.p_value
        (6, 0, 0.03125)
    """
    from scipy.stats import binomtest

    a, b = as_truth(a_correct, "a_correct"), as_truth(b_correct, "b_correct")
    check_paired(a, b)
    a_only, b_only = int((a & ~b).sum()), int((b & ~a).sum())
    discordant = a_only + b_only
    p_value = float(binomtest(a_only, discordant).pvalue) if discordant else 1.0
    return McNemar(a_only, b_only, p_value, a.size)


def sign_flip_test(a: Values, b: Values, seed: int = 0) -> SignFlip:
    """Permutation test of a paired difference: under the null each a - b is as likely as b - a.

    All 2^n sign assignments are enumerated where they are fewer than `RESAMPLES`; else that many
    are drawn, and the p-value counts the observed one among them, so that it is never 0.

    Args:
        a: one value per image under one arm.
        b: the same images under the other.
        seed: of the drawn sign assignments.

    Returns:
        The mean of a - b and its two-sided p-value.

    Raises:
        DataError: different lengths, fewer than two pairs, or NaN or infinite values.

    Source:
        Fisher 1935; `scipy.stats.permutation_test`.

    Example:
        >>> sign_flip_test([3.0, 4.0, 5.0], [1.0, 1.0, 1.0]).p_value
        0.25
    """
    from scipy.stats import permutation_test

    differences = _differences(a, b)
    exact = 2**differences.size <= RESAMPLES
    result = permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=RESAMPLES,
        batch=rows_at_once(differences.size),
        rng=np.random.default_rng(seed),
    )
    drawn = f"{RESAMPLES} sign flips drawn, seed {seed}"
    return SignFlip(
        difference=float(result.statistic),
        p_value=float(result.pvalue),
        method="all sign flips" if exact else drawn,
        n=differences.size,
    )


def false_discovery(p_values: Values) -> Float[Tensor, " hypothesis"]:
    """Benjamini-Hochberg adjustment: reject where the result is below the false discovery rate.

    q_(i) = min over j >= i of p_(j) m / j, for the m p-values in ascending order.

    Args:
        p_values: one per hypothesis, each in [0, 1].

    Returns:
        Adjusted p-values in float64, in the order given.

    Raises:
        DataError: no p-value, or one that is NaN or outside [0, 1].

    Source:
        Benjamini and Hochberg 1995; `scipy.stats.false_discovery_control`.

    Example:
        >>> false_discovery([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.04, 0.04]
    """
    from scipy.stats import false_discovery_control

    values = as_values(p_values, "p_values", least=1)
    outside = values[(values < 0) | (values > 1)]
    if outside.size:
        raise DataError(f"p-values lie in [0, 1]; found {outside.size} outside, e.g. {outside[0]}.")
    return torch.from_numpy(false_discovery_control(values))


def _bootstrap(
    columns: tuple[np.ndarray, ...],
    statistic: Statistic,
    seed: int,
    level: float,
    name: str,
) -> Interval:
    """BCa where it is defined, else percentile; the same resamples for the same seed."""
    _check_level(level)
    low, high, method = np.nan, np.nan, "BCa"
    if any(np.ptp(column) for column in columns):
        low, high = interval_ends(columns, statistic, seed, level, method)
    if not np.isfinite([low, high]).all():
        method = "percentile"
        low, high = interval_ends(columns, statistic, seed, level, method)
    if not np.isfinite([low, high]).all():
        raise DataError(
            f"The statistic is undefined on some resamples of these {columns[0].size} images (a zero "
            "denominator?); give more images, or a statistic that holds on every resample."
        )
    estimate = float(statistic(*columns, axis=-1))
    described = f"{method} {name}, {RESAMPLES} resamples, seed {seed}"
    return Interval(estimate, low, high, level, described, n=columns[0].size)


def _ratio_of_sums(part: np.ndarray, whole: np.ndarray, axis: int) -> np.ndarray | np.floating:
    return part.sum(axis=axis) / whole.sum(axis=axis)


def _differences(a: Values, b: Values) -> np.ndarray:
    first, second = as_values(a, "a"), as_values(b, "b")
    check_paired(first, second)
    return first - second


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise DataError(f"Found confidence level {level}; it lies between 0 and 1, e.g. 0.95.")


def _style(width: float, estimate: float) -> str:
    """Format that shows the width with two digits (the estimate with three if there is no width)."""
    digits, size = (1, width) if width > 0 else (2, abs(estimate))
    decimals = digits - floor(log10(size)) if size > 0 else digits
    return f".{max(0, decimals)}f" if -5 <= decimals <= 6 else ".3g"
