"""Interventions on attention: biases, cuts, written patterns, clipping, gates and heads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttreg_interp.errors import InterventionError
from ttreg_interp.interventions import (
    AblateHeads,
    AttentionBias,
    ClippedSoftmax,
    ExtraTokens,
    GateHeads,
    KnockoutAttention,
    PatchActivation,
    ReplacePattern,
    SoftmaxOffByOne,
    TestTimeRegister,
    ZeroNeurons,
)

from .kinds import NEURONS
from .laws import batches, cached, few, layouts, run
from .models import D_MODEL, LAYOUTS, N_HEADS, N_LAYERS, images, model

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
D_HEAD = D_MODEL // N_HEADS


def random_bias(seed: int, copies: float = 1.0) -> AttentionBias:
    """Keys and values of the size of a token's."""
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, N_LAYERS, N_HEADS, D_HEAD, generator=generator)
    return AttentionBias(k, v, copies=copies)


@few
@given(layouts, batches, st.integers(0, 99))
def test_a_bias_that_counts_as_next_to_no_key_changes_nothing(layout, pixels, seed):
    faint = random_bias(seed, copies=1e-30)
    torch.testing.assert_close(run(layout, pixels, faint), run(layout, pixels), **CLOSE)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "rotation" not in name])
def test_a_key_that_every_query_points_away_from_changes_nothing(layout):
    """k' to minus infinity: queries get a common first entry, k' is far on its other side."""
    queries = PatchActivation("blocks.1.attn.hook_q", torch.tensor(1.0), dims=(0,))
    k = torch.zeros(1, N_HEADS, D_HEAD)
    k[..., 0] = -1e5
    bias = AttentionBias(k, torch.full((1, N_HEADS, D_HEAD), 7.0), layers=(1,))
    torch.testing.assert_close(
        run(layout, images(3), queries, bias), run(layout, images(3), queries), **CLOSE
    )


@few
@given(layouts, batches, st.integers(2, 5))
def test_a_bias_counting_as_tau_keys_is_tau_biases(layout, pixels, tau):
    one, many = random_bias(0, copies=float(tau)), [random_bias(0)] * tau
    torch.testing.assert_close(run(layout, pixels, one), run(layout, pixels, *many), **CLOSE)


@few
@given(layouts, batches)
def test_biases_in_one_layer_keep_their_own_weights(layout, pixels):
    a, b = random_bias(0, copies=3.0), random_bias(1, copies=0.5)
    torch.testing.assert_close(run(layout, pixels, a, b), run(layout, pixels, b, a), **CLOSE)


@few
@given(layouts, batches)
def test_softmax_off_by_one_is_a_bias_of_zeros(layout, pixels):
    zeros = torch.zeros(N_LAYERS, N_HEADS, D_HEAD)
    bias = AttentionBias(zeros, zeros, copies=2.0)
    assert torch.equal(run(layout, pixels, SoftmaxOffByOne(2.0)), run(layout, pixels, bias))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_softmax_off_by_one_adds_to_the_denominator(layout):
    pixels = images(2)
    cache = cached(layout, pixels, SoftmaxOffByOne(3.0, layers=(0,)))
    exponents = cached(layout, pixels)["blocks.0.attn.hook_attn_scores"].exp()
    expected = exponents / (3 + exponents.sum(dim=-1, keepdim=True))
    torch.testing.assert_close(cache["pattern", 0][..., 1:], expected, **CLOSE)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("multiplicity", [1.0, 4.0])
def test_the_key_and_value_of_an_images_register_are_its_attention_bias(layout, multiplicity):
    """The register frozen: no query, no MLP, no residual; the register neurons zeroed."""
    pixels = images(1, seed=3)
    register = TestTimeRegister(NEURONS, multiplicity=multiplicity)
    row = model(layout).layout().n_prefix
    cache = cached(layout, pixels, register)
    k, v = (torch.stack([cache[kind, layer][0, row] for layer in range(N_LAYERS)]) for kind in "kv")
    bias = ZeroNeurons(NEURONS) + AttentionBias(k, v, copies=multiplicity)
    torch.testing.assert_close(run(layout, pixels, bias), run(layout, pixels, register), **CLOSE)


@few
@given(layouts, batches)
def test_a_cut_removes_attention_and_the_rest_shares_it_or_not(layout, pixels):
    query, key = (0, 3), (1, 2)
    plain = cached(layout, pixels)["pattern", 0]
    cut = plain.clone()
    cut[:, :, torch.tensor(query)[:, None], torch.tensor(key)] = 0
    zeroed = cached(layout, pixels, KnockoutAttention(query, key, (0,), renormalise=False))
    assert torch.equal(zeroed["pattern", 0], cut)
    shared = cached(layout, pixels, KnockoutAttention(query, key, (0,)))
    torch.testing.assert_close(shared["pattern", 0], cut / cut.sum(dim=-1, keepdim=True), **CLOSE)


@pytest.mark.parametrize("renormalise", [True, False])
def test_a_cut_can_be_in_some_heads_only(renormalise):
    layout, pixels = "timm with [CLS]", images(2)
    cut = KnockoutAttention("cls", "patches", (1,), heads=(0,), renormalise=renormalise)
    pattern, plain = cached(layout, pixels, cut)["pattern", 1], cached(layout, pixels)["pattern", 1]
    assert not pattern[:, 0, 0, 1:].any()
    assert torch.equal(pattern[:, 1], plain[:, 1])
    assert torch.equal(pattern[:, 0, 1:], plain[:, 0, 1:])


def test_a_cut_leaves_an_attention_bias_alone():
    """Columns count from the end: the bias in front is no token."""
    layout, pixels = "timm with [CLS]", images(2)
    cut = random_bias(0) + KnockoutAttention("all", "patches", layers=(1,))
    pattern = cached(layout, pixels, cut)["pattern", 1]
    assert pattern.shape[-1] == 18
    assert not pattern[..., 2:].any()
    torch.testing.assert_close(pattern[..., :2].sum(-1), torch.ones(2, 2, 17))


def test_a_query_cut_from_all_keys_is_refused():
    layout = "timm with [CLS]"
    with pytest.raises(InterventionError, match="without any key.*renormalise=False"):
        run(layout, images(1), KnockoutAttention("cls", "all"))
    in_parts = KnockoutAttention("cls", "patches"), KnockoutAttention("cls", "cls")
    with pytest.raises(InterventionError, match="without any key"):
        run(layout, images(1), *in_parts)
    run(layout, images(1), KnockoutAttention("cls", "all", renormalise=False))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_written_pattern_is_what_values_are_mixed_by(layout):
    pixels = images(2)
    n_tokens = model(layout).layout().n_tokens
    pattern = torch.rand(2, N_HEADS, n_tokens, n_tokens, generator=torch.Generator().manual_seed(0))
    cache = cached(layout, pixels, ReplacePattern(1, pattern, heads=(1,), query=(0, 2)))
    expected = cached(layout, pixels)["pattern", 1].clone()
    expected[:, 1, (0, 2)] = pattern[:, 1, (0, 2)]
    torch.testing.assert_close(cache["pattern", 1], expected)


@few
@given(layouts, batches)
def test_a_clipped_softmax_stretches_and_clips(layout, pixels):
    plain = cached(layout, pixels)["pattern", 0]
    clipped = cached(layout, pixels, ClippedSoftmax(gamma=-0.05, zeta=1.1))["pattern", 0]
    torch.testing.assert_close(clipped, (1.15 * plain - 0.05).clamp(0, 1))
    assert (clipped == 0).any()
    by_length = cached(layout, pixels, ClippedSoftmax(alpha=2.0))["pattern", 0]
    gamma = -2 / plain.shape[-1]
    torch.testing.assert_close(by_length, ((1 - gamma) * plain + gamma).clamp(0, 1))
    unclipped = run(layout, pixels, ClippedSoftmax())
    torch.testing.assert_close(unclipped, run(layout, pixels), **CLOSE)


@few
@given(layouts, batches)
def test_gates_open_close_and_read_the_layers_input(layout, pixels):
    weight = torch.zeros(N_LAYERS, N_HEADS, D_MODEL)
    bias = torch.zeros(N_LAYERS, N_HEADS)
    half_open = GateHeads(weight, bias, scale=2.0)
    torch.testing.assert_close(run(layout, pixels, half_open), run(layout, pixels), **CLOSE)
    bias[1, 0] = -1e4
    closed = run(layout, pixels, GateHeads(weight[1:2], bias[1:2], (1,), scale=2.0))
    torch.testing.assert_close(closed, run(layout, pixels, AblateHeads({1: [0]})), **CLOSE)
    weight[0, 1] = torch.linspace(-1, 1, D_MODEL)
    plain = cached(layout, pixels)
    gated = cached(layout, pixels, GateHeads(weight[:1], bias[:1], (0,)))["z", 0]
    norm = model(layout).blocks[0].ln1.norm
    gate = (norm(plain["resid_pre", 0]) @ weight[0, 1]).sigmoid()[..., None]
    torch.testing.assert_close(gated[:, :, 1], plain["z", 0][:, :, 1] * gate, **CLOSE)


@few
@given(layouts, batches)
def test_gates_read_the_layers_input_as_those_composed_before_them_leave_it(layout, pixels):
    patch = PatchActivation("blocks.1.hook_resid_pre", torch.linspace(-3, 3, D_MODEL))
    weight, bias = torch.zeros(1, N_HEADS, D_MODEL), torch.zeros(1, N_HEADS)
    weight[..., 0::2] = 0.1
    gates = GateHeads(weight, bias, (1,))
    norm = model(layout).blocks[1].ln1.norm
    patched = cached(layout, pixels, patch)
    for both, read in (
        (patch + gates, patched["resid_pre", 1]),
        (gates + patch, cached(layout, pixels)["resid_pre", 1]),
    ):
        gate = (norm(read) @ weight[0].T).sigmoid()[..., None]
        found = cached(layout, pixels, both)["z", 1]
        torch.testing.assert_close(found, patched["z", 1] * gate, **CLOSE)


@few
@given(layouts, batches)
def test_an_ablated_head_is_missing_from_the_sum_over_heads(layout, pixels):
    plain = cached(layout, pixels)
    ablated = cached(layout, pixels, AblateHeads({1: [1]}))
    expected = plain["attn_out", 1] - plain["z", 1][:, :, 1] @ model(layout).blocks[1].attn.W_O[1]
    torch.testing.assert_close(ablated["attn_out", 1], expected, rtol=1e-3, atol=1e-4)


@few
@given(layouts, batches)
def test_a_patched_run_is_the_run_that_it_was_patched_from(layout, pixels):
    """All of the residual stream of another run: from there on it is that run."""
    other = pixels.flip(0).roll(1, dims=-1)
    clean = cached(layout, other)
    patch = PatchActivation.from_cache(clean, "blocks.1.hook_resid_post")
    torch.testing.assert_close(run(layout, pixels, patch), run(layout, other), **CLOSE)


@few
@given(layouts, batches)
def test_patches_of_single_tokens_add_up_to_the_patch_of_all(layout, pixels):
    clean = cached(layout, pixels.flip(-1))
    hook = "blocks.0.hook_resid_mid"
    whole = PatchActivation.from_cache(clean, hook)
    prefix = tuple(range(model(layout).layout().n_prefix + 1))
    rest = tuple(range(len(prefix), model(layout).layout().n_tokens))
    parts = [PatchActivation.from_cache(clean, hook, tokens=rows) for rows in (prefix, rest)]
    assert torch.equal(run(layout, pixels, *parts), run(layout, pixels, whole))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_patches_of_single_heads_and_dimensions(layout):
    pixels = images(2)
    clean, plain = cached(layout, images(2, seed=9)), cached(layout, pixels)
    hook = "blocks.0.attn.hook_v"
    patch = PatchActivation.from_cache(clean, hook, heads=(1,), dims=(0, 3), tokens="patches")
    expected = plain[hook].clone()
    rows = torch.arange(model(layout).layout().n_tokens)[model(layout).layout().patches]
    expected[:, rows[:, None], 1, torch.tensor([0, 3])] = clean[hook][
        :, rows[:, None], 1, torch.tensor([0, 3])
    ]
    assert torch.equal(cached(layout, pixels, patch)[hook], expected)


def test_a_pattern_with_registers_in_it_does_not_fit_one_without():
    layout = "timm with [CLS]"
    pattern = ReplacePattern(1, torch.ones(1, 1, 17, 17) / 17)
    with pytest.raises(InterventionError, match=r"\[1, 2, 18, 18\].*lengthen the last two"):
        run(layout, images(1), ExtraTokens(), pattern)
