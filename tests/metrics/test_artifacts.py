"""Tokens that draw attention at an ordinary norm are found, and only those."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from ttreg_interp.errors import DataError
from ttreg_interp.metrics.artifacts import attention_artifacts, attention_norm_correlation

from .laws import law, seeds


def image_with_artifacts() -> tuple[torch.Tensor, torch.Tensor]:
    """3 images of 16 patches: one sink of ordinary norm, one sink that is an outlier, one outlier."""
    generator = torch.Generator().manual_seed(0)
    received = 0.01 + 0.01 * torch.rand(3, 16, generator=generator)
    norms = 20 + 5 * torch.rand(3, 16, generator=generator)
    received[:, 3] = 0.3
    received[:, 7], norms[:, 7] = 0.4, 150.0
    norms[:, 11] = 150.0
    return received, norms


def test_a_sink_of_ordinary_norm_is_found_and_others_are_not():
    found = attention_artifacts(*image_with_artifacts(), attention_factor=5.0, norm_threshold=75.0)
    assert found.draws_attention[0].nonzero()[:, 0].tolist() == [3, 7]
    assert found.outlier[0].nonzero()[:, 0].tolist() == [7, 11]
    assert found.low_norm.nonzero().tolist() == [[0, 3], [1, 3], [2, 3]]
    assert found.missed_by_norm().estimate == 0.5
    torch.testing.assert_close(found.low_norm_fraction, torch.full((3,), 1 / 16).double())
    torch.testing.assert_close(found.low_norm_mass.float(), torch.full((3,), 0.3))


def test_attention_is_judged_in_units_of_the_image_it_belongs_to():
    received, norms = image_with_artifacts()
    scaled = received * torch.tensor([[1.0], [0.5], [0.01]])
    masks = [
        attention_artifacts(a, norms, attention_factor=5.0, norm_threshold=75.0).draws_attention
        for a in (received, scaled)
    ]
    assert torch.equal(*masks)


def test_even_attention_draws_nothing():
    found = attention_artifacts(
        torch.full((2, 16), 1 / 16), torch.ones(2, 16), attention_factor=1.0, norm_threshold=2.0
    )
    assert not found.draws_attention.any()
    assert found.low_norm_mass.tolist() == [0.0, 0.0]


@law
@given(seeds, st.booleans())
def test_the_correlation_is_that_of_scipy_ties_included(seed, ties):
    generator = torch.Generator().manual_seed(seed)
    received, norms = torch.rand(2, 3, 12, generator=generator, dtype=torch.float64)
    if ties:
        received, norms = (5 * received).round() / 5, (5 * norms).round()
    expected = [spearmanr(a, n).statistic for a, n in zip(received, norms, strict=True)]
    assert attention_norm_correlation(received, norms).tolist() == pytest.approx(expected)


@law
@given(seeds)
def test_the_correlation_sees_ranks_only(seed):
    generator = torch.Generator().manual_seed(seed)
    received, norms = torch.rand(2, 3, 12, generator=generator, dtype=torch.float64)
    there = attention_norm_correlation(received, norms)
    torch.testing.assert_close(attention_norm_correlation(received.exp(), norms**3), there)
    torch.testing.assert_close(attention_norm_correlation(-received, norms), -there)


RECEIVED, NORMS = image_with_artifacts()


def artifacts(received=RECEIVED, norms=NORMS, factor=5.0):
    return attention_artifacts(received, norms, attention_factor=factor, norm_threshold=75.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: artifacts(received=-RECEIVED), "received is not negative; found -0.4"),
        (lambda: artifacts(norms=NORMS - 100), "norms is not negative; found -80"),
        (lambda: artifacts(norms=NORMS / 0), "norms of shape .* NaN or infinite"),
        (lambda: artifacts(RECEIVED[:0], NORMS[:0]), "received is empty"),
        (lambda: artifacts(factor=0.5), "multiple of the median, 1 or more; found 0.5"),
        (
            lambda: artifacts(factor=1e6).missed_by_norm(),
            r"No token of 3 images receives 1000000.0 x the median",
        ),
        (
            lambda: attention_norm_correlation(RECEIVED, NORMS * 0 + 1),
            "norms of image 0 is the same for all tokens",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
