"""Histograms of norms, and the rules that find a threshold in them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.discovery.laws import law, seeds
from ttreg_interp.discovery.sketch import NormHistogram, bin_counts
from ttreg_interp.discovery.thresholds import DEFAULTS, find_threshold
from ttreg_interp.errors import DataError


def bulk(n: int = 4000, seed: int = 0, spread: float = 0.15) -> torch.Tensor:
    noise = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return 10 * (spread * noise).exp()


def histogram(norms: torch.Tensor) -> NormHistogram:
    return NormHistogram(bin_counts(norms))


@law
@given(seeds, st.floats(0.01, 100.0))
def test_statistics_of_a_histogram_are_within_half_a_percent(seed, unit):
    norms = bulk(seed=seed) * unit
    found = histogram(norms)
    median = norms.quantile(0.5)
    exact = {
        found.quantile(0.5): median,
        found.quantile(0.98): norms.quantile(0.98),
        found.mean(): norms.mean(),
        found.mean() + 3 * found.std(): norms.mean() + 3 * norms.std(),
        found.quantile(0.5) + found.mad(): median + 1.4826 * (norms - median).abs().median(),
        found.log_mean(): norms.log().mean().exp(),
    }
    for estimate, truth in exact.items():
        assert estimate == pytest.approx(float(truth), rel=5e-3)


@law
@given(seeds, st.integers(0, 4000))
def test_histograms_of_parts_add_up_to_that_of_the_whole(seed, cut):
    norms = bulk(seed=seed)
    parts = bin_counts(norms[:cut]) + bin_counts(norms[cut:])
    assert torch.equal(parts, bin_counts(norms))


@law
@given(seeds, st.floats(4.0, 80.0), st.integers(2, 300))
def test_the_valley_parts_two_modes_whatever_their_distance_and_size(seed, ratio, n_outliers):
    norms = torch.cat((bulk(seed=seed), ratio * bulk(n_outliers, seed + 1)))
    found = find_threshold(histogram(norms), "valley")
    above = norms > found.value
    assert found.share == pytest.approx(n_outliers / len(norms), rel=0.1)
    assert above[-n_outliers:].double().mean() > 0.9
    assert found.separation == pytest.approx(ratio, rel=0.2)


@law
@given(seeds, st.floats(0.01, 0.3))
def test_the_valley_finds_nothing_in_one_mode(seed, spread):
    found = find_threshold(histogram(bulk(seed=seed, spread=spread)), "valley")
    assert (found.value, found.share) == (float("inf"), 0.0)


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        ("absolute", 42.0, lambda n: 42.0),
        ("sigma", None, lambda n: n.mean() + 3 * n.std()),
        ("sigma", 2.0, lambda n: n.mean() + 2 * n.std()),
        ("mad", 5.0, lambda n: n.median() + 5 * 1.4826 * (n - n.median()).abs().median()),
        ("percentile", 98.0, lambda n: n.quantile(0.98)),
    ],
)
def test_each_named_rule_is_its_formula(rule, value, expected):
    norms = torch.cat((bulk(), 20 * bulk(40)))
    found = find_threshold(histogram(norms), rule, value)
    assert found.value == pytest.approx(float(expected(norms)), rel=5e-3)
    assert found.share == pytest.approx(float((norms > found.value).double().mean()), abs=2e-3)
    assert rule in found.rule


def test_only_valley_and_absolute_can_find_nothing():
    one_mode = histogram(bulk())
    shares = {
        rule: find_threshold(one_mode, rule, 100.0 if rule == "absolute" else None).share
        for rule in DEFAULTS
    }
    assert {rule for rule, share in shares.items() if share == 0} == {"valley", "absolute"}


def test_an_absolute_threshold_needs_its_number_and_says_examples():
    with pytest.raises(DataError, match="needs threshold_value.*75 for\n? ?OpenCLIP"):
        find_threshold(histogram(bulk()), "absolute")


def test_a_threshold_of_no_norms_is_refused():
    with pytest.raises(DataError, match="found none"):
        find_threshold(histogram(torch.zeros(0)), "valley")
