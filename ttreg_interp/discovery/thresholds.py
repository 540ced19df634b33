"""Rules for the norm above which a token is an outlier.

All rules read norms of the residual stream before any final norm: a norm layer makes all tokens
equally long and hides what is looked for.
"""

from dataclasses import dataclass

import torch

from ttreg_interp.discovery.config import ThresholdRule
from ttreg_interp.discovery.sketch import NormHistogram
from ttreg_interp.errors import DataError

DEFAULTS: dict[ThresholdRule, float | None] = {
    "valley": 2.5,
    "absolute": None,
    "sigma": 3.0,
    "mad": 4.0,
    "percentile": 98.0,
}
"""The number of each rule where none is given."""

BULK_WIDTHS = 5
"""No valley within this many standard deviations (of the log norm, from its lower half) of the
median: a few tokens of many thousands lie four away in any model."""


@dataclass(frozen=True)
class Threshold:
    """A norm that separates outliers from the rest, and how far apart they are."""

    value: float
    """The norm; infinite where no token stands out."""
    rule: str
    """Rule and number, in words."""
    separation: float
    """Geometric mean norm of the tokens above it over the median norm; 1 without any."""
    share: float
    """Share of the tokens above it."""
    level: float
    """Geometric mean norm of the tokens above it."""


def find_threshold(
    norms: NormHistogram, rule: ThresholdRule, value: float | None = None
) -> Threshold:
    """The threshold that a rule finds in the norms of many tokens.

        absolute    value
        sigma       mean + value x standard deviation       (arXiv 2506.08010, A.4, with 3)
        mad         median + value x 1.4826 x median absolute deviation
        percentile  the value-th percentile
        valley      the split of the log norms with the largest variance between both sides (Otsu),
                    among the splits above the bulk; none if the upper side is not `value` times
                    the median, geometric mean to median

    All rules but 'valley' and 'absolute' find outliers in any model, because every distribution has
    a tail.

    Raises:
        DataError: an unknown rule, no norms, or 'absolute' without its number.
    """
    if rule not in DEFAULTS:
        raise DataError(f"The threshold rule is one of {list(DEFAULTS)}; found {rule!r}.")
    if not norms.n:
        raise DataError("A threshold is found in the norms of tokens; found none. Give images.")
    number = DEFAULTS[rule] if value is None else value
    if number is None:
        raise DataError(
            "The rule 'absolute' needs threshold_value, a norm before the final norm (75 for "
            "OpenCLIP ViT-B/16, 150 for DINOv2 ViT-L/14 in arXiv 2506.08010)."
        )
    if rule == "valley":
        return _valley(norms, number)
    found = {
        "absolute": lambda: number,
        "sigma": lambda: norms.mean() + number * norms.std(),
        "mad": lambda: norms.quantile(0.5) + number * norms.mad(),
        "percentile": lambda: norms.quantile(number / 100),
    }[rule]()
    return _described(norms, found, f"{rule} {number:g}")


def _described(norms: NormHistogram, value: float, rule: str) -> Threshold:
    upper = norms.above(value)
    if not upper.n:
        return Threshold(value, rule, separation=1.0, share=0.0, level=0.0)
    level = upper.log_mean()
    return Threshold(value, rule, level / norms.quantile(0.5), upper.n / norms.n, level)


def _valley(norms: NormHistogram, least_ratio: float) -> Threshold:
    """Otsu's split of the log norms, above the bulk; the middle of the empty stretch it lies in."""
    median = norms.quantile(0.5)
    # the lower half of the bulk is free of outliers, so its width is the bulk's
    width = median / norms.quantile(0.1587)
    counts, log_norm = norms.counts.double(), norms.centres.log()
    upper_count = counts.flip(0).cumsum(0).flip(0)  # of the bin and all above it
    upper_sum = (counts * log_norm).flip(0).cumsum(0).flip(0)
    lower_count, lower_sum = norms.n - upper_count, (counts * log_norm).sum() - upper_sum
    between = (
        upper_count
        * lower_count
        * (upper_sum / upper_count.clamp_min(1) - lower_sum / lower_count.clamp_min(1)).square()
    )
    allowed = norms.centres > median * max(width**BULK_WIDTHS, 1.5)
    between = torch.where(allowed & (upper_count > 0), between, torch.zeros_like(between))
    rule = f"valley {least_ratio:g}"
    if not between.max():
        return Threshold(float("inf"), rule, separation=1.0, share=0.0, level=0.0)
    plateau = (between >= between.max() * (1 - 1e-9)).nonzero().flatten()
    middle = (log_norm[plateau[0]] + log_norm[plateau[-1]]) / 2
    found = _described(norms, float(middle.exp()), rule)
    if found.separation < least_ratio:
        return Threshold(float("inf"), rule, found.separation, share=0.0, level=0.0)
    return found
