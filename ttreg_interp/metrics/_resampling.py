"""Resampling over images: the bootstrap behind every interval."""

import warnings
from collections.abc import Callable
from typing import Literal, TypeAlias

import numpy as np

Statistic: TypeAlias = Callable[..., np.ndarray | np.floating]
"""Takes columns of one value per image, and `axis=`, the axis of the images, which it removes."""

RESAMPLES = 9999
"""Bootstrap resamples, and sign flips where they cannot all be enumerated; scipy's default."""

_CHUNK = 2**18
"""Numbers held at once while resampling: memory stays small, and the numbers in the cache."""


def interval_ends(
    columns: tuple[np.ndarray, ...],
    statistic: Statistic,
    seed: int,
    level: float,
    method: Literal["BCa", "percentile"],
) -> tuple[float, float]:
    """Ends of a bootstrap interval over paired columns; NaN where the method is undefined."""
    from scipy.stats import DegenerateDataWarning, bootstrap

    with warnings.catch_warnings():
        # an undefined interval comes back as NaN, which the caller handles
        warnings.simplefilter("ignore", DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        ends = bootstrap(
            columns,
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=rows_at_once(columns[0].size),
            confidence_level=level,
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(ends.low), float(ends.high)


def rows_at_once(n: int) -> int:
    """How many resamples of n images to hold at once."""
    return max(1, _CHUNK // n)
