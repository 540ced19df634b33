"""Residual norms: outliers are seen where they are, and the numbers are those of numpy."""

import numpy as np
import pytest
import torch

from ttreg_interp.errors import DataError
from ttreg_interp.metrics.norms import (
    massive_entries,
    max_over_median,
    norm_quantiles,
    outlier_fraction,
)


def norms_with_outliers() -> torch.Tensor:
    """3 layers, 4 images, 20 tokens: one outlier per image from layer 1 on."""
    norms = 1 + torch.rand(3, 4, 20, generator=torch.Generator().manual_seed(0))
    norms[1:, :, 7] = 100.0
    return norms


def test_max_over_median_is_about_one_until_the_outliers_form():
    ratio = max_over_median(norms_with_outliers())
    assert (ratio[0] < 2).all()
    assert (ratio[1:] > 50).all()


@pytest.mark.parametrize("tokens", [19, 20])
def test_max_over_median_is_the_ratio_that_numpy_finds(tokens):
    norms = norms_with_outliers()[..., :tokens]
    expected = norms.numpy().max(-1) / np.median(norms.numpy(), axis=-1)
    np.testing.assert_allclose(max_over_median(norms), expected, rtol=1e-6)


def test_max_over_median_does_not_depend_on_the_scale_of_the_model():
    norms = norms_with_outliers().double()
    torch.testing.assert_close(max_over_median(7 * norms), max_over_median(norms))


def test_the_outlier_fraction_counts_tokens_above_the_threshold_only():
    norms = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    shares = [outlier_fraction(norms, threshold).item() for threshold in (0.5, 2.0, 3.9, 4.0)]
    assert shares == [1.0, 0.5, 0.25, 0.0]


def test_the_outlier_fraction_is_per_layer_and_image():
    norms = norms_with_outliers()
    norms[2, 3, :10] = 100.0
    fraction = outlier_fraction(norms, 50.0)
    assert fraction[0].tolist() == [0, 0, 0, 0]
    assert fraction[2].tolist() == [0.05, 0.05, 0.05, 0.5]


def test_quantiles_are_those_of_numpy_over_all_images_of_a_layer():
    norms = norms_with_outliers()
    shares = (0.0, 0.1, 0.5, 0.99, 1.0)
    expected = np.quantile(norms.double().numpy().reshape(3, -1), shares, axis=1)
    np.testing.assert_allclose(norm_quantiles(norms, shares), expected, rtol=1e-12)


def test_half_precision_norms_are_reduced_in_float64():
    norms = norms_with_outliers().to(torch.bfloat16)
    assert max_over_median(norms).dtype == torch.float64
    torch.testing.assert_close(norm_quantiles(norms), norm_quantiles(norms.double()))


def test_a_massive_activation_passes_both_conditions():
    residual = torch.full((2, 6, 10), 0.2)
    residual[0, 1, 2] = -201.0  # above 100 and above 1000 x 0.2
    residual[0, 1, 3] = 150.0  # above 100 only
    residual[1] = 0.01
    residual[1, 4, 5] = 60.0  # above 1000 x 0.01 only
    assert massive_entries(residual).nonzero().tolist() == [[0, 1, 2]]


def test_massive_activations_are_judged_image_by_image():
    images = 5 * torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(0))
    images[1, 0, 0] = 1e5
    alone = torch.cat([massive_entries(image[None]) for image in images])
    assert torch.equal(massive_entries(images), alone)
    assert torch.equal(massive_entries(images[1]), alone[1])
    assert alone.sum() == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda norms: max_over_median(norms.index_fill(-1, torch.tensor([3]), float("nan"))),
            r"norms \[layer, batch, token\] of shape \(3, 4, 20\) has 12 NaN or infinite entries, "
            r"the first at \(0, 0, 3\)",
        ),
        (lambda norms: outlier_fraction(-norms, 1.0), "Norms are not negative; found -100"),
        (lambda norms: norm_quantiles(norms[:, :0]), r"is empty, of shape \(3, 0, 20\)"),
        (lambda norms: norm_quantiles(norms, (0.5, 99.0)), r"shares in \[0, 1\]; found 99.0"),
        (
            lambda norms: max_over_median(torch.relu(norms - 60)),
            "median norm of image 0 at layer 0 is 0",
        ),
        (lambda norms: massive_entries(norms / 0), "residual of shape .* NaN or infinite"),
    ],
)
def test_what_cannot_be_a_norm_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call(norms_with_outliers())
