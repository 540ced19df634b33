"""Residual norms of tokens: how far the outliers stand out, in each layer and each image.

Norms are of the residual stream before any final norm (`blocks.{l}.hook_resid_mid` after attention,
`blocks.{l}.hook_resid_post` after the MLP). Take the rows of the patches only: [CLS] and registers
have norms of their own, and a register is meant to be large.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ttreg_interp.errors import DataError
from ttreg_interp.metrics._values import check_finite


def max_over_median(norms: Float[Tensor, "layer batch token"]) -> Float[Tensor, "layer batch"]:
    """How far the largest token of an image stands above the ordinary one: max_t n_t / median_t n_t.

    Args:
        norms: residual norms of the patches.

    Returns:
        The ratio per layer and image, in float64; about 1 without outliers.

    Raises:
        DataError: no norms, or NaN, infinite or negative ones, or an image whose median norm is 0.

    Example:
        >>> max_over_median(torch.tensor([[[1.0, 2.0, 3.0, 50.0]]])).tolist()
        [[20.0]]
    """
    norms = _checked(norms)
    median = norms.quantile(0.5, dim=-1)
    if (median == 0).any():
        layer, image = (median == 0).nonzero()[0].tolist()
        raise DataError(
            f"The median norm of image {image} at layer {layer} is 0, so most of its tokens are "
            "zeroed; leave zeroed tokens out of the norms."
        )
    return norms.amax(dim=-1) / median


def outlier_fraction(
    norms: Float[Tensor, "layer batch token"], threshold: float
) -> Float[Tensor, "layer batch"]:
    """Share of an image's tokens whose norm exceeds the threshold.

    Compare arms at one threshold, found on the unedited model: a threshold found anew on an edited
    model moves with what it should measure.

    Args:
        norms: residual norms of the patches.
        threshold: a norm; a token at the threshold is not an outlier.

    Returns:
        The share per layer and image, in float64.

    Raises:
        DataError: no norms, or NaN, infinite or negative ones.

    Source:
        arXiv 2309.16588, section 2.1; arXiv 2506.08010, section 3.

    Example:
        >>> outlier_fraction(torch.tensor([[[1.0, 2.0, 3.0, 50.0]]]), threshold=30.0).tolist()
        [[0.25]]
    """
    return (_checked(norms) > threshold).double().mean(dim=-1)


def norm_quantiles(
    norms: Float[Tensor, "layer batch token"], quantiles: Sequence[float] = (0.0, 0.5, 0.99, 1.0)
) -> Float[Tensor, "quantile layer"]:
    """Quantiles of a layer's norms over the tokens of all images together.

    Args:
        norms: residual norms of the patches.
        quantiles: shares in [0, 1]; values between two norms are interpolated linearly.

    Returns:
        One row per quantile, in float64.

    Raises:
        DataError: no norms, or NaN, infinite or negative ones, or a quantile outside [0, 1].

    Example:
        >>> norm_quantiles(torch.arange(9.0).view(1, 3, 3), (0.5, 1.0)).tolist()
        [[4.0], [8.0]]
    """
    if outside := [share for share in quantiles if not 0 <= share <= 1]:
        raise DataError(f"Quantiles are shares in [0, 1]; found {outside[0]}.")
    pooled = _checked(norms).flatten(start_dim=1)
    return pooled.quantile(torch.tensor(quantiles, dtype=pooled.dtype, device=pooled.device), dim=1)


def massive_entries(
    residual: Float[Tensor, "*images token d_model"],
    absolute: float = 100.0,
    relative: float = 1000.0,
) -> Bool[Tensor, "*images token d_model"]:
    """Which residual entries are massive: |x| > absolute and |x| > relative x median |x| of the image.

    Args:
        residual: block outputs, all tokens.
        absolute: magnitude to exceed.
        relative: multiple of the median magnitude over the image's tokens and dimensions to exceed.

    Returns:
        True at massive activations.

    Raises:
        DataError: no entries, or NaN or infinite ones.

    Source:
        arXiv 2402.17762, section 2.

    Example:
        >>> residual = torch.full((1, 4, 8), 0.1)
        >>> residual[0, 0, 3] = -1502.0
        >>> massive_entries(residual).nonzero().tolist()
        [[0, 0, 3]]
    """
    check_finite(residual, "residual")
    magnitude = residual.abs().double()
    median = magnitude.flatten(start_dim=-2).quantile(0.5, dim=-1)[..., None, None]
    return (magnitude > absolute) & (magnitude > relative * median)


def _checked(norms: Float[Tensor, "layer batch token"]) -> Float[Tensor, "layer batch token"]:
    """The norms in float64, if they can be norms."""
    check_finite(norms, "norms [layer, batch, token]")
    if (norms < 0).any():
        raise DataError(f"Norms are not negative; found {norms.amin().item():.3g}.")
    return norms.double()
