"""Attention statistics: conservation laws, the sinks of hand-made patterns, and refusals."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttreg_interp.errors import DataError, LayoutError
from ttreg_interp.metrics.attention import (
    attention_entropy,
    attention_mass,
    attention_received,
    sink_rate,
)

from .laws import law, seeds


def random_pattern(seed: int = 0, tokens: int = 6, causal: bool = False) -> torch.Tensor:
    """2 images, 3 heads."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 3, tokens, tokens, generator=generator, dtype=torch.float64)
    if causal:
        scores = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -math.inf)
    return scores.softmax(-1)


def sink_pattern(tokens: int, key: int, share: float) -> torch.Tensor:
    """Every query of one image and head gives `share` to one key, the rest evenly to the others."""
    pattern = torch.full((1, 1, tokens, tokens), (1 - share) / (tokens - 1))
    pattern[..., key] = share
    return pattern


@law
@given(seeds)
def test_all_that_queries_give_is_received(seed):
    received = attention_received(random_pattern(seed))
    torch.testing.assert_close(received.sum(-1), torch.ones_like(received[..., 0]))


def test_a_causal_key_is_averaged_over_the_queries_that_see_it():
    pattern = random_pattern(causal=True)
    received = attention_received(pattern, causal=True)
    for key in range(6):
        torch.testing.assert_close(received[..., key], pattern[..., key:, key].mean(-1))


def test_identical_tokens_without_positions_have_no_sink():
    """Proposition of arXiv 2410.10781: repeated tokens spread a causal query evenly over its past."""
    tokens = 64
    uniform = torch.ones(tokens, tokens).tril() / torch.arange(1, tokens + 1)[:, None]
    received = attention_received(uniform.expand(1, 4, -1, -1), causal=True)
    assert sink_rate(received[None], epsilon=0.3).per_key[0] == 0


def test_entropy_runs_from_one_key_to_all_keys():
    one, all_keys = torch.eye(8)[0], torch.full((8,), 1 / 8)
    entropies = attention_entropy(torch.stack([one, all_keys])).tolist()
    assert entropies == [0.0, pytest.approx(math.log(8))]


@law
@given(seeds)
def test_entropy_is_that_of_the_distribution(seed):
    rows = random_pattern(seed)[:, :, 0]
    expected = torch.distributions.Categorical(probs=rows).entropy()
    torch.testing.assert_close(attention_entropy(rows), expected)


@law
@given(seeds, st.lists(st.booleans(), min_size=6, max_size=6))
def test_the_mass_on_a_set_and_on_its_complement_make_one(seed, marked):
    pattern, keys = random_pattern(seed), torch.tensor(marked)
    on, off = attention_mass(pattern, keys), attention_mass(pattern, ~keys)
    torch.testing.assert_close(on + off, torch.ones_like(on))
    torch.testing.assert_close(on, pattern[..., keys].sum(-1))


def test_each_image_can_have_its_own_set_of_keys():
    """As many heads as images, so that a mask laid along the wrong axis would pass unseen."""
    pattern = random_pattern()[:, :2]
    keys = torch.tensor([[True, False, False, False, False, True], [False, True] * 3])
    mass = attention_mass(pattern, keys)
    for image in range(2):
        expected = pattern[image][..., keys[image]].sum(-1)
        torch.testing.assert_close(mass[image], expected)
    torch.testing.assert_close(attention_mass(pattern[:, 0, 0], keys), mass[:, 0, 0])


def test_the_sink_rate_counts_heads_and_names_the_best_key():
    heads = [sink_pattern(5, key, share) for key, share in ((2, 0.9), (2, 0.5), (4, 0.6))]
    received = attention_received(torch.cat(heads, dim=1))
    rate = sink_rate(received[None], epsilon=0.3)
    torch.testing.assert_close(rate.per_key, torch.tensor([0, 0, 2, 0, 1]).double() / 3)
    assert rate.best_key == 2
    assert str(rate) == "66.7% at key 2 (epsilon 0.3, 5 tokens)"


def test_the_sink_rate_is_a_share_over_layers_and_heads_of_each_image():
    received = torch.zeros(4, 2, 3, 7)
    received[:3, 0, :, 1] = 0.5  # image 0: three of four layers, all heads
    received[:, 1, 0, 1] = 0.5  # image 1: all layers, one of three heads
    rate = sink_rate(received, epsilon=0.3)
    assert rate.per_image[:, 1].tolist() == [0.75, pytest.approx(1 / 3)]


@law
@given(seeds, st.floats(0, 0.9), st.floats(0, 0.09))
def test_a_stricter_epsilon_finds_no_more_sinks(seed, epsilon, step):
    received = attention_received(random_pattern(seed))[None]
    loose, strict = (sink_rate(received, epsilon=e).per_image for e in (epsilon, epsilon + step))
    assert (strict <= loose).all()


def test_ties_between_sinks_go_to_the_first_key():
    assert sink_rate(torch.full((1, 1, 1, 3), 1 / 3), epsilon=0.1).best_key == 0


def test_half_precision_patterns_are_summed_in_float64():
    pattern = random_pattern(tokens=50).to(torch.bfloat16)
    received = attention_received(pattern)
    torch.testing.assert_close(received, pattern.double().mean(-2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda p: attention_received(20 * p - 5),
            DataError,
            r"found values from -\S+ to \S+\. Give the pattern after the softmax",
        ),
        (lambda p: attention_entropy(p / 0), DataError, "attention of shape .* NaN or infinite"),
        (lambda p: attention_mass(p - 1, torch.ones(6).bool()), DataError, r"lies in \[0, 1\]"),
        (
            lambda p: attention_received(p, causal=True),
            DataError,
            "Found attention to a later key; this pattern is not causal",
        ),
        (
            lambda p: attention_received(p[..., :5], causal=True),
            LayoutError,
            "as many queries as keys; found 6 and 5",
        ),
        (
            lambda p: sink_rate(p.transpose(0, 1), epsilon=1.0),
            DataError,
            r"epsilon is a share of attention in \[0, 1\); found 1.0",
        ),
        (lambda p: sink_rate(p[:0], epsilon=0.3), DataError, "attention is empty"),
    ],
)
def test_what_is_no_attention_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(random_pattern())
