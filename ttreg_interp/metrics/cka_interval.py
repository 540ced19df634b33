"""An interval for CKA, which the bootstrap cannot give: an image drawn twice is like itself."""

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import DataError
from ttreg_interp.metrics.intervals import Interval
from ttreg_interp.metrics.similarity import linear_cka

GROUPS = 32
"""At most so many groups of images are left out in turn."""


def cka_interval(
    x: Float[Tensor, "batch d_model"],
    y: Float[Tensor, "batch d_other"],
    debiased: bool = True,
    level: float = 0.95,
) -> Interval:
    """Linear CKA with its jackknife interval: images are left out in turn, in groups.

        se^2 = (g - 1)/g sum_i (CKA_(i) - mean)^2,   CKA +- t_{g-1} se, cut off at 1

    Args:
        x: features of one kind.
        y: features of the other kind, of the same images in the same order.
        debiased: as `linear_cka`.
        level: confidence level.

    Raises:
        DataError: fewer than five images, or what `linear_cka` refuses.

    Source: Quenouille 1956; the delete-a-group jackknife, Kott 2001.

    Example:
        >>> x = torch.arange(24.0).sin().view(8, 3)
        >>> cka_interval(x, 2 * x).low
        1.0
    """
    from scipy.stats import t

    if len(x) < 5:
        raise DataError(f"Found {len(x)} images; an interval of CKA needs 5 or more.")
    estimate = linear_cka(x, y, debiased)
    group = torch.arange(len(x), device=x.device) % min(GROUPS, len(x))
    g = int(group.max()) + 1
    left_out = [linear_cka(x[group != i], y[group != i], debiased) for i in range(g)]
    without = torch.tensor(left_out, dtype=torch.float64)
    error = float(((g - 1) / g * (without - without.mean()).square().sum()).sqrt())
    half = float(t.ppf((1 + level) / 2, g - 1)) * error
    method = f"jackknife, {g} groups"
    ends = (estimate - half, min(estimate + half, max(1.0, estimate)))
    return Interval(estimate, *ends, level, method, n=len(x))
