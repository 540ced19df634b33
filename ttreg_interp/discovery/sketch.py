"""A histogram of norms that streams, merges exactly, and has every statistic that a rule needs."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

BINS_PER_OCTAVE = 128
LOWEST, HIGHEST = -24, 24  # powers of two; norms outside count in the end bins
N_BINS = BINS_PER_OCTAVE * (HIGHEST - LOWEST)


def bin_counts(norms: Float[Tensor, "*any"]) -> Int[Tensor, " bin"]:
    """How many of the norms lie in each logarithmic bin."""
    position = (
        norms.flatten().cpu().double().clamp_min(2.0**LOWEST).log2() - LOWEST
    ) * BINS_PER_OCTAVE
    return torch.bincount(position.long().clamp(0, N_BINS - 1), minlength=N_BINS)


@dataclass(frozen=True)
class NormHistogram:
    """Counts in logarithmic bins, 128 an octave: every statistic is within 0.3 % of the exact one.

    Example:
        >>> norms = NormHistogram(bin_counts(torch.tensor([1.0, 2.0, 3.0, 50.0, 2.0])))
        >>> round(norms.quantile(0.5), 1)
        2.0
    """

    counts: Int[Tensor, " bin"]
    """Norms in each bin."""

    @property
    def n(self) -> int:
        """How many norms."""
        return int(self.counts.sum())

    @property
    def centres(self) -> Float[Tensor, " bin"]:
        """Geometric centre of each bin."""
        return _edges()[:-1] * 2 ** (0.5 / BINS_PER_OCTAVE)

    def quantile(self, share: float) -> float:
        """The norm below which a share of the norms lies."""
        return _weighted_quantile(self.centres, self.counts, share)

    def mean(self) -> float:
        """Mean norm."""
        return float((self.centres * self.counts).sum() / self.n)

    def std(self) -> float:
        """Standard deviation of the norms."""
        square = float((self.centres.square() * self.counts).sum() / self.n)
        return max(square - self.mean() ** 2, 0.0) ** 0.5

    def mad(self) -> float:
        """Median absolute deviation from the median, times 1.4826 (sigma of a normal)."""
        deviation = (self.centres - self.quantile(0.5)).abs()
        order = deviation.argsort()
        return 1.4826 * _weighted_quantile(deviation[order], self.counts[order], 0.5)

    def above(self, threshold: float) -> "NormHistogram":
        """Only the bins above a threshold."""
        return NormHistogram(self.counts * (self.centres > threshold))

    def log_mean(self) -> float:
        """Geometric mean of the norms."""
        return float(((self.centres.log() * self.counts).sum() / max(self.n, 1)).exp())


def _edges() -> Float[Tensor, " edge"]:
    return 2 ** (torch.arange(N_BINS + 1, dtype=torch.float64) / BINS_PER_OCTAVE + LOWEST)


def _weighted_quantile(
    values: Float[Tensor, " bin"], counts: Int[Tensor, " bin"], share: float
) -> float:
    """The value at which the cumulative count reaches the share; values in ascending order."""
    cumulative = counts.cumsum(0)
    target = max(share * float(cumulative[-1]), 1.0)
    return float(values[int((cumulative.double() < target).sum())])
