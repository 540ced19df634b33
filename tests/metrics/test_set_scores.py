"""Scores of sets: what they are on all images, on resamples, and as paired differences."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttreg_interp.errors import DataError
from ttreg_interp.metrics.intervals import mean_interval, paired_difference, ratio_interval
from ttreg_interp.metrics.set_scores import Best, Mean, MeanOfRuns, Ratio, multiplicity

from .laws import law, seeds


def draws(seed, *shape):
    return np.random.default_rng(seed).random(shape)


@law
@given(seeds, st.integers(2, 30))
def test_weights_are_how_often_an_image_was_drawn(seed, n):
    values = draws(seed, n)
    drawn = np.random.default_rng(seed + 1).integers(0, n, (3, 2, n))
    resampled = Mean(values).of(multiplicity(drawn, n))
    assert resampled == pytest.approx(values[drawn].mean(axis=-1))


def test_a_mean_has_the_interval_of_the_mean_and_a_paired_difference():
    a, b = draws(0, 40), draws(1, 40)
    assert Mean(a, scale=100).interval(seed=3) == mean_interval(100 * a, seed=3)
    assert Mean(a).minus(Mean(b), seed=3) == paired_difference(a, b, seed=3)


def test_a_ratio_is_that_of_the_sums():
    part, whole = draws(2, 30), 1 + draws(3, 30)
    found, expected = Ratio(part, whole).interval(), ratio_interval(part, whole)
    assert (found.estimate, found.low, found.high) == pytest.approx(
        (expected.estimate, expected.low, expected.high)
    )


def test_the_best_of_a_sweep_chooses_anew_in_every_resample():
    values = draws(4, 25, 6)
    found = Best(values).interval(seed=1)
    assert found.estimate == pytest.approx(values.mean(axis=0).max())
    single = max((mean_interval(column, seed=1) for column in values.T), key=lambda i: i.estimate)
    assert found.high > single.estimate > found.low
    drawn = np.random.default_rng(0).integers(0, 25, (50, 25))
    means = values[drawn].mean(axis=1).max(axis=-1)
    assert Best(values).of(multiplicity(drawn, 25)) == pytest.approx(means)


def test_a_difference_keeps_the_pairs_together():
    """Two arms that differ by the same amount in every image differ without doubt."""
    part, whole = draws(5, 30), np.full(30, 2.0)
    found = Ratio(part + 0.2, whole).minus(Ratio(part, whole))
    assert (found.low, found.high) == pytest.approx((0.1, 0.1))


def test_runs_are_averaged():
    a, b = draws(6, 10), draws(7, 10)
    assert MeanOfRuns([Mean(a), Mean(b)]).interval().estimate == pytest.approx((a + b).mean() / 2)


@pytest.mark.parametrize(
    "call",
    [
        lambda: MeanOfRuns([Mean([1.0, 0.0]), Mean([1.0, 0.0, 1.0])]).interval(),
        lambda: Ratio([1.0, 2.0], [1.0, 2.0]).minus(Mean([1.0, 0.0, 1.0])),
    ],
)
def test_scores_of_other_images_are_refused(call):
    with pytest.raises(DataError, match=r"found runs of \[2, 3\] images"):
        call()
