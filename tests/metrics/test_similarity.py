"""Similarity: CKA against its definition on Gram matrices, and the invariances it is used for."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttreg_interp.errors import DataError
from ttreg_interp.metrics.similarity import (
    LinearCKA,
    cosine,
    kl_of_logits,
    linear_cka,
    mean_cosine_to_others,
    relative_change,
)

from .laws import law, seeds

kinds = st.booleans()


def features(seed: int, images: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated features of 5 and 7 dimensions, off centre."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, 5, generator=generator, dtype=torch.float64) + 3
    y = torch.randn(images, 7, generator=generator, dtype=torch.float64)
    y[:, :5] += x
    return x, y


def centring_hsic(k: torch.Tensor, l: torch.Tensor) -> torch.Tensor:  # noqa: E741
    n = len(k)
    h = torch.eye(n, dtype=k.dtype) - 1 / n
    return torch.trace(k @ h @ l @ h)


def u_statistic_hsic(k: torch.Tensor, l: torch.Tensor) -> torch.Tensor:  # noqa: E741
    n = len(k)
    k, l = k - torch.diag(k.diag()), l - torch.diag(l.diag())  # noqa: E741
    one = torch.ones(n, dtype=k.dtype)
    first = torch.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
    return (first - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))


def cka_of_gram_matrices(x, y, debiased):
    hsic = u_statistic_hsic if debiased else centring_hsic
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return float(hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt())


@law
@given(seeds, kinds, st.integers(5, 30))
def test_cka_is_that_of_the_gram_matrices(seed, debiased, images):
    x, y = features(seed, images)
    expected = cka_of_gram_matrices(x, y, debiased)
    assert linear_cka(x, y, debiased) == pytest.approx(expected, abs=1e-9)


@law
@given(seeds, kinds, st.lists(st.integers(1, 11), max_size=4))
def test_cka_does_not_depend_on_the_batches_it_came_in(seed, debiased, cuts):
    x, y = features(seed)
    streamed = LinearCKA(debiased)
    edges = [0, *sorted(set(cuts)), len(x)]
    for start, end in zip(edges, edges[1:], strict=False):
        streamed.update(x[start:end], y[start:end])
    assert streamed.compute() == pytest.approx(linear_cka(x, y, debiased), abs=1e-12)


@law
@given(seeds, kinds, st.integers(0, 12))
def test_merged_shards_are_one_run(seed, debiased, cut):
    x, y = features(seed)
    shards = []
    for rows in (slice(None, cut), slice(cut, None)):
        shard = LinearCKA(debiased)
        if len(x[rows]):
            shard.update(x[rows], y[rows])
        shards.append(shard)
    shards[0].merge(shards[1])
    assert shards[0].images == 12
    assert shards[0].compute() == pytest.approx(linear_cka(x, y, debiased), abs=1e-12)


@law
@given(seeds, kinds)
def test_cka_sees_neither_rotation_nor_scale_nor_offset(seed, debiased):
    x, y = features(seed)
    rotation = torch.linalg.qr(features(seed + 1, 7)[1]).Q
    moved = 3 * y @ rotation - 11
    assert linear_cka(x, moved, debiased) == pytest.approx(linear_cka(x, y, debiased), abs=1e-9)
    assert linear_cka(y, moved, debiased) == pytest.approx(1.0)


def test_only_the_debiased_cka_of_independent_features_with_many_dimensions_is_near_zero():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 20, 500, generator=generator)
    assert linear_cka(x, y) > 0.9
    assert abs(linear_cka(x, y, debiased=True)) < 0.1


def test_features_hidden_under_a_large_constant_are_still_compared():
    """Registers: pairwise cosine near 1 through a few huge dimensions that do not vary."""
    x, y = features(0, images=200)
    constant = torch.zeros(5, dtype=torch.float64)
    constant[2] = 1e3
    for debiased in (False, True):
        expected = linear_cka(x, y, debiased)
        assert linear_cka(x + constant, y, debiased) == pytest.approx(expected, abs=1e-4)


def test_the_relative_change_is_per_image_and_over_all_tokens():
    reference = torch.ones(2, 4, 4)
    changed = reference.clone()
    changed[1, 0, 0] += 4
    assert relative_change(changed, reference).tolist() == [0.0, 1.0]


@law
@given(seeds)
def test_cosine_is_that_of_torch(seed):
    a, b = features(seed)[0].view(6, 2, 5).unbind(1)
    expected = torch.nn.functional.cosine_similarity(a, b, dim=1)
    torch.testing.assert_close(cosine(a, b), expected)


@law
@given(seeds)
def test_the_mean_cosine_to_others_leaves_the_image_itself_out(seed):
    x, _ = features(seed, 6)
    pairs = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1)
    expected = (pairs.sum(1) - 1) / 5
    torch.testing.assert_close(mean_cosine_to_others(x), expected)


@law
@given(seeds)
def test_kl_of_logits_is_that_of_torch_and_not_symmetric(seed):
    p, q = 3 * features(seed)[1].view(2, 6, 7)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    )
    torch.testing.assert_close(kl_of_logits(p, q), expected)
    assert not torch.allclose(kl_of_logits(q, p), expected)


def test_a_class_of_vanishing_probability_costs_nothing():
    certain = torch.tensor([[0.0, -1e4]])
    assert kl_of_logits(certain, torch.zeros(1, 2)).item() == pytest.approx(math.log(2))


def raised_by_cka(*pairs, debiased=False):
    cka = LinearCKA(debiased)
    for x, y in pairs:
        cka.update(x, y)
    cka.compute()


def merged_kinds():
    LinearCKA(debiased=True).merge(LinearCKA())


X, Y = features(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (raised_by_cka, "CKA needs 2 images or more; found 0"),
        (lambda: raised_by_cka((X[:3], Y[:3]), debiased=True), "needs 4 images or more; found 3"),
        (lambda: raised_by_cka((X, Y), (Y, X)), r"of \(7, 5\) dimensions after \(5, 7\)"),
        (
            lambda: raised_by_cka((X, Y * 0 + 0.1)),
            "in y every pair of the 12 images is equally alike",
        ),
        (lambda: linear_cka(X * 0 + 0.1, Y, debiased=True), "in x every pair of the 12"),
        (lambda: linear_cka(X / 0, Y), "x of shape .* NaN or infinite"),
        (lambda: linear_cka(torch.eye(6), Y[:6], debiased=True), "in x every pair of the 6 images"),
        (merged_kinds, "debiased=False; this one has .* True"),
        (lambda: relative_change(X, X * 0), "reference of image 0 is zero"),
        (lambda: cosine(X * 0, X), "a of image 0 is zero"),
        (lambda: mean_cosine_to_others(X[:1]), "Found the features of 1 image"),
        (lambda: kl_of_logits(X, X * math.nan), "changed of shape .* 60 NaN"),
        (lambda: relative_change(X[:0], X[:0]), "changed is empty"),
    ],
)
def test_what_has_no_similarity_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
