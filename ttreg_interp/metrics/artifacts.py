"""Attention artifacts that a norm threshold misses: tokens that draw attention at an ordinary norm.

Outlier tokens are told by their norm, and in DINOv2 and DFN-CLIP the tokens that spoil attention
maps are outliers at the output. In OpenAI CLIP and OpenCLIP some spoil the map at a low norm
(arXiv 2505.21501): there a threshold on norms alone reports that nothing is wrong.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ttreg_interp.errors import DataError
from ttreg_interp.metrics._values import check_finite
from ttreg_interp.metrics.intervals import Interval, ratio_interval


@dataclass(frozen=True, eq=False)
class AttentionArtifacts:
    """Which tokens draw attention and which have a large norm, image by image."""

    received: Float[Tensor, "batch token"]
    """Attention received, as given."""
    draws_attention: Bool[Tensor, "batch token"]
    """Tokens that receive more than `attention_factor` x the median token of their image."""
    outlier: Bool[Tensor, "batch token"]
    """Tokens whose norm exceeds `norm_threshold`."""
    attention_factor: float
    """Multiple of the median from which attention is drawn."""
    norm_threshold: float
    """Norm above which a token is an outlier."""

    @property
    def low_norm(self) -> Bool[Tensor, "batch token"]:
        """Tokens that draw attention at an ordinary norm."""
        return self.draws_attention & ~self.outlier

    @property
    def low_norm_fraction(self) -> Float[Tensor, " batch"]:
        """Share of an image's tokens that draw attention at an ordinary norm."""
        return self.low_norm.double().mean(dim=1)

    @property
    def low_norm_mass(self) -> Float[Tensor, " batch"]:
        """Attention that falls on those tokens."""
        return torch.where(self.low_norm, self.received.double(), 0.0).sum(dim=1)

    def missed_by_norm(self, seed: int = 0, level: float = 0.95) -> Interval:
        """Share of the tokens that draw attention that the norm threshold misses, over all images.

        Raises:
            DataError: no token draws attention.
        """
        if not self.draws_attention.any():
            raise DataError(
                f"No token of {len(self.received)} images receives {self.attention_factor} x the "
                "median; lower the factor, or report that none draws attention."
            )
        missed, drawn = self.low_norm.sum(dim=1), self.draws_attention.sum(dim=1)
        return ratio_interval(missed, drawn, seed, level)


def attention_artifacts(
    received: Float[Tensor, "batch token"],
    norms: Float[Tensor, "batch token"],
    *,
    attention_factor: float,
    norm_threshold: float,
) -> AttentionArtifacts:
    """Tell tokens that draw attention from tokens of large norm.

    A token draws attention if a_t > attention_factor x median_t a_t of its image: in units of the
    median, so that neither the number of tokens nor the share that goes to [CLS] matters.

    Args:
        received: attention that each patch receives, e.g. from [CLS] in the last layer, mean over
            heads.
        norms: residual norms of the same patches, at the same layer.
        attention_factor: no value follows from theory; sweep it, and compare arms at one value.
        norm_threshold: as for outlier tokens.

    Returns:
        Both kinds of token, image by image.

    Raises:
        DataError: no tokens, NaN, negative values, or a factor below 1.

    Source:
        The observation of arXiv 2505.21501 on norms at the output.

    Example:
        >>> received = torch.tensor([[0.01, 0.01, 0.01, 0.5, 0.4]])
        >>> norms = torch.tensor([[20.0, 22.0, 21.0, 19.0, 150.0]])
        >>> found = attention_artifacts(received, norms, attention_factor=10.0, norm_threshold=75.0)
        >>> found.low_norm.tolist()
        [[False, False, False, True, False]]
    """
    for values, name in ((received, "received"), (norms, "norms")):
        check_finite(values, name)
        if (values < 0).any():
            raise DataError(f"{name} is not negative; found {values.min().item():.3g}.")
    if attention_factor < 1:
        raise DataError(
            f"attention_factor is a multiple of the median, 1 or more; found {attention_factor}."
        )
    median = received.double().quantile(0.5, dim=1, keepdim=True)
    return AttentionArtifacts(
        received=received,
        draws_attention=received > attention_factor * median,
        outlier=norms > norm_threshold,
        attention_factor=attention_factor,
        norm_threshold=norm_threshold,
    )


def attention_norm_correlation(
    received: Float[Tensor, "batch token"], norms: Float[Tensor, "batch token"]
) -> Float[Tensor, " batch"]:
    """Spearman correlation, over an image's tokens, of attention received and norm.

    Near 1 where attention goes to large norms; near 0 or below where norms say nothing about it.

    Args:
        received: attention that each patch receives.
        norms: residual norms of the same patches.

    Returns:
        The rank correlation of each image, in float64, equal values sharing their mean rank.

    Raises:
        DataError: no tokens, NaN, or an image whose attention or norms are all equal.

    Example:
        >>> norms = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
        >>> attention_norm_correlation(torch.tensor([[0.1, 0.2, 0.9], [0.9, 0.2, 0.1]]), norms).tolist()
        [1.0, -1.0]
    """
    centred = []
    for values, name in ((received, "received"), (norms, "norms")):
        check_finite(values, name)
        flat = values.amax(dim=1) == values.amin(dim=1)
        if flat.any():
            raise DataError(
                f"{name} of image {int(flat.nonzero()[0])} is the same for all tokens; "
                "it has no ranks to correlate."
            )
        ranks = _mean_ranks(values)
        centred.append(ranks - ranks.mean(dim=1, keepdim=True))
    a, b = centred
    return (a * b).sum(dim=1) / (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()


def _mean_ranks(values: Float[Tensor, "batch token"]) -> Float[Tensor, "batch token"]:
    """How many tokens of the image are smaller, and half of those that are equal."""
    ordered = values.sort(dim=1).values.contiguous()
    smaller = torch.searchsorted(ordered, values.contiguous(), side="left")
    not_larger = torch.searchsorted(ordered, values.contiguous(), side="right")
    return (smaller + not_larger).double() / 2
