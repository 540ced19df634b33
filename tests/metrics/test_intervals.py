"""Intervals and paired tests: what they promise about coverage, exactness and refusal."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttreg_interp.errors import DataError
from ttreg_interp.metrics.intervals import (
    Interval,
    controls_interval,
    false_discovery,
    mcnemar,
    mean_interval,
    paired_difference,
    ratio_interval,
    sign_flip_test,
    statistic_interval,
)

from .laws import law

small_numbers = st.integers(-20, 20).map(lambda number: number / 4)


def normal_values(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 2.0, n)


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        ((0.8134, 0.7701, 0.8532), "0.813 [0.770, 0.853]"),
        ((150.23, 146.11, 154.42), "150.2 [146.1, 154.4]"),
        ((15500.0, 14500.0, 16500.0), "15500 [14500, 16500]"),
        ((0.000612, 0.000598, 0.000631), "0.000612 [0.000598, 0.000631]"),
        ((2.75e-20, 1.5e-20, 4.25e-20), "2.75e-20 [1.5e-20, 4.25e-20]"),
        ((1.0, 1.0, 1.0), "1.00 [1.00, 1.00]"),
        ((0.0, 0.0, 0.0), "0.00 [0.00, 0.00]"),
    ],
)
def test_an_interval_prints_as_many_digits_as_its_width_carries(interval, text):
    assert str(Interval(*interval, level=0.95, method="", n=2)) == text


def test_an_interval_survives_json():
    interval = mean_interval(normal_values(20))
    assert Interval(**json.loads(json.dumps(interval.to_dict()))) == interval


def test_a_value_is_in_an_interval_between_its_ends():
    interval = Interval(0.5, 0.4, 0.7, level=0.95, method="", n=9)
    assert [value in interval for value in (0.39, 0.4, 0.7, 0.71)] == [False, True, True, False]


def test_a_mean_of_many_normal_values_has_the_interval_of_the_central_limit():
    values = normal_values(2000)
    half = 1.96 * values.std(ddof=1) / math.sqrt(values.size)
    interval = mean_interval(values)
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_a_95_percent_interval_covers_the_truth_about_that_often():
    draws = np.random.default_rng(0).exponential(1.0, (100, 40))
    covered = sum(1.0 in mean_interval(row) for row in draws)
    assert 88 <= covered <= 99


def test_a_skewed_sample_has_a_longer_upper_arm():
    interval = mean_interval(np.random.default_rng(0).exponential(1.0, 30))
    assert interval.high - interval.estimate > interval.estimate - interval.low


@law
@given(st.lists(small_numbers, min_size=3, max_size=12), st.integers(0, 3))
def test_units_do_not_matter(values, seed):
    plain = mean_interval(values, seed=seed)
    scaled = mean_interval([4 * value - 8 for value in values], seed=seed)
    for end in ("estimate", "low", "high"):
        assert getattr(scaled, end) == pytest.approx(4 * getattr(plain, end) - 8, abs=1e-9)


@law
@given(st.lists(small_numbers, min_size=2, max_size=12))
def test_an_interval_holds_its_estimate_and_stays_within_the_values(values):
    interval = mean_interval(values)
    tolerance = 1e-12
    assert min(values) - tolerance <= interval.low <= interval.estimate + tolerance
    assert interval.estimate - tolerance <= interval.high <= max(values) + tolerance


def test_the_seed_decides_the_resamples_and_is_told():
    values = normal_values(15)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1).low != mean_interval(values, seed=2).low
    assert mean_interval(values, seed=2).method == "BCa bootstrap, 9999 resamples, seed 2"


def test_values_without_spread_fall_back_to_percentiles_and_say_so():
    interval = mean_interval([0.1] * 7)
    assert (interval.low, interval.high) == (pytest.approx(0.1), pytest.approx(0.1))
    assert interval.method == "percentile bootstrap, 9999 resamples, seed 0"


def test_lists_arrays_and_tensors_of_any_type_give_the_same_interval():
    truth = [True, False, True, True, False, True]
    expected = mean_interval(truth)
    for dtype in (torch.bool, torch.bfloat16, torch.float16, torch.int64):
        assert mean_interval(torch.tensor(truth).to(dtype)) == expected
    assert mean_interval(np.array(truth)) == expected


def test_a_higher_level_gives_a_wider_interval():
    values = normal_values(25)
    narrow, wide = mean_interval(values, level=0.8), mean_interval(values, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_pairs_are_kept_together():
    """Images differ far more than arms do; only an unpaired interval would hide the difference."""
    images = 100 * normal_values(30)
    effect = 1 + 0.1 * normal_values(30, seed=1)
    interval = paired_difference(images + effect, images)
    assert interval.estimate == pytest.approx(effect.mean())
    assert interval.low > 1
    assert interval.method.startswith("BCa paired bootstrap")


def test_exchanging_the_arms_turns_the_difference_round():
    a, b = normal_values(20), normal_values(20, seed=1)
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert back.estimate == pytest.approx(-there.estimate)
    assert back.low == pytest.approx(-there.high, abs=0.05)
    assert back.high == pytest.approx(-there.low, abs=0.05)


def test_a_ratio_of_sums_is_resampled_by_image():
    rng = np.random.default_rng(0)
    union = rng.integers(50, 100, 40)
    intersection = rng.binomial(union, 0.6)

    interval = ratio_interval(intersection, union)
    assert interval.estimate == pytest.approx(intersection.sum() / union.sum())
    assert 0.6 in interval


def test_a_statistic_that_is_the_mean_gives_the_interval_of_the_mean():
    values = normal_values(12)
    assert statistic_interval(lambda v, axis: v.mean(axis), [values]) == mean_interval(values)


def test_a_ratio_of_means_weighs_every_image_by_its_whole():
    assert ratio_interval([0, 9], [1, 9]).estimate == 0.9


def test_a_statistic_undefined_on_a_resample_is_refused():
    with pytest.raises(DataError, match="undefined on some resamples of these 3 images"):
        ratio_interval([0.0, 0.0, 1.0], [0.0, 0.0, 1.0])


def test_controls_show_the_spread_of_single_draws():
    draws = normal_values(200)
    interval = controls_interval(draws)
    assert interval.estimate == pytest.approx(draws.mean())
    assert [interval.low, interval.high] == pytest.approx(np.percentile(draws, [2.5, 97.5]))
    assert interval.n == 200
    assert interval.high - interval.low > 5 * (mean_interval(draws).high - mean_interval(draws).low)


@law
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=40))
def test_mcnemar_is_the_two_sided_binomial_tail_of_the_discordant_pairs(pairs):
    a_only = sum(a and not b for a, b in pairs)
    b_only = sum(b and not a for a, b in pairs)
    discordant = a_only + b_only
    tail = sum(math.comb(discordant, k) for k in range(min(a_only, b_only) + 1)) / 2**discordant
    result = mcnemar([a for a, _ in pairs], [b for _, b in pairs])
    assert (result.a_only, result.b_only, result.n) == (a_only, b_only, len(pairs))
    assert result.p_value == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_ignores_images_on_which_the_arms_agree():
    few = mcnemar([1, 1, 1, 0], [0, 0, 0, 1])
    many = mcnemar([1, 1, 1, 0] + [1] * 500, [0, 0, 0, 1] + [1] * 500)
    assert few.p_value == many.p_value


@law
@given(st.lists(st.integers(-8, 8), min_size=2, max_size=8))
def test_few_pairs_enumerate_all_sign_flips(differences):
    flips = itertools.product((1, -1), repeat=len(differences))
    means = [np.mean([s * d for s, d in zip(signs, differences, strict=True)]) for signs in flips]
    expected = np.mean([abs(mean) >= abs(np.mean(differences)) - 1e-12 for mean in means])
    result = sign_flip_test([float(d) for d in differences], [0.0] * len(differences))
    assert result.p_value == pytest.approx(expected)
    assert result.difference == pytest.approx(np.mean(differences))
    assert result.method == "all sign flips"


def test_many_pairs_draw_sign_flips_and_never_report_certainty():
    result = sign_flip_test(normal_values(60), np.zeros(60), seed=4)
    assert result.p_value == pytest.approx(2 / 10_000)
    assert result.method == "9999 sign flips drawn, seed 4"


def test_sign_flips_find_nothing_between_arms_of_one_distribution():
    p_values = [
        sign_flip_test(normal_values(30, seed), normal_values(30, seed + 100)).p_value
        for seed in range(20)
    ]
    assert sum(p < 0.05 for p in p_values) <= 4


@law
@given(st.lists(st.integers(0, 100).map(lambda percent: percent / 100), min_size=1, max_size=15))
def test_false_discovery_is_the_step_up_rule(p_values):
    """Hypothesis i is rejected at rate q where some p_j >= p_i has p_j <= q (rank of p_j) / m."""
    m = len(p_values)
    rates = [(p, p * m / sum(other <= p for other in p_values)) for p in p_values]
    expected = [min(rate for p, rate in rates if p >= own) for own in p_values]
    assert false_discovery(p_values).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), r"values has 0 value\(s\); at least 2 needed"),
        (lambda: mean_interval([1.0]), r"values has 1 value\(s\); at least 2 needed"),
        (
            lambda: mean_interval([0.0, math.nan, math.inf, 1.0]),
            r"values has 2 NaN or infinite value\(s\) among 4, the first at 1",
        ),
        (lambda: mean_interval(torch.zeros(3, 2)), r"values has shape \(3, 2\); give one axis"),
        (lambda: mean_interval([0.0, 1.0], level=95.0), "confidence level 95.0; it lies between 0"),
        (lambda: controls_interval([0.0, 1.0], level=1.0), "confidence level 1.0"),
        (lambda: controls_interval([0.5]), "at least 2 needed"),
        (lambda: paired_difference([0.0, 1.0], [0.0, 1.0, 2.0]), "Found 2 and 3 values; pairs"),
        (lambda: paired_difference([0.0, 1.0], [0.0, math.nan]), "b has 1 NaN"),
        (lambda: sign_flip_test([0.0, 1.0], [1.0, 2.0, 3.0]), "the same images in the same order"),
        (lambda: mcnemar([1, 0], [1, 0, 1]), "Found 2 and 3 values"),
        (lambda: mcnemar([0.5, 0.0], [1, 0]), "a_correct must hold only 0 and 1; found 0.5"),
        (lambda: statistic_interval(lambda axis: 0, []), "Found no column of values"),
        (lambda: statistic_interval(lambda a, axis: a, [[1.0, math.nan]]), "column 0 has 1 NaN"),
        (
            lambda: false_discovery([0.5, 1.5]),
            r"p-values lie in \[0, 1\]; found 1 outside, e.g. 1.5",
        ),
        (lambda: false_discovery([]), r"p_values has 0 value\(s\); at least 1 needed"),
    ],
)
def test_what_cannot_carry_an_interval_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
