"""The same interventions on language models: laws, positions, causality."""

from functools import cache

import pytest
import torch
from torch import Tensor

from ttreg_interp.errors import InterventionError
from ttreg_interp.hooked import HookedLM
from ttreg_interp.interventions import (
    AblateHeads,
    AttentionBias,
    DeleteTokens,
    Empty,
    ExtraTokens,
    Intervention,
    KnockoutAttention,
    LargestNorms,
    MaskTokens,
    MeanNeurons,
    MoveNeurons,
    NoiseNeurons,
    Outliers,
    PatchActivation,
    ScaleNeurons,
    SetMassiveActivations,
    ShuffleNeurons,
    SoftmaxOffByOne,
    TestTimeRegister,
    ZeroNeurons,
)
from ttreg_interp.testbed.random_lm import FAMILIES, random_lm

NEURONS = {1: [3, 50], 2: [7]}
LAYERS, HEADS, D_HEAD, D_MODEL = 3, 4, 8, 32


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


BIAS = AttentionBias(noise(LAYERS, HEADS, D_HEAD), noise(LAYERS, HEADS, D_HEAD, seed=1))
EXAMPLES: dict[str, Intervention] = {
    "zeroed neurons": ZeroNeurons(NEURONS),
    "neurons zeroed at the first token": ZeroNeurons(NEURONS, tokens="bos"),
    "neurons zeroed in the text": ZeroNeurons(NEURONS, tokens="text"),
    "neurons zeroed on outliers": ZeroNeurons({2: [7]}, tokens=Outliers(6.0, layer=0)),
    "neurons at a stored mean": MeanNeurons(NEURONS, noise(3)),
    "scaled neurons": ScaleNeurons(NEURONS, 3.0),
    "massive activations set": SetMassiveActivations(1, (2, 5), (0.0, 30.0), "bos"),
    "a patched residual between attention and MLP": PatchActivation(
        "blocks.1.hook_resid_mid", noise(D_MODEL), tokens="text"
    ),
    "attention bias": BIAS,
    "attention bias that counts as three keys": AttentionBias(BIAS.k, BIAS.v, copies=3.0),
    "softmax off by one": SoftmaxOffByOne(),
    "the sink cut": KnockoutAttention("text", "bos"),
    "the sink cut, not renormalised": KnockoutAttention("text", "bos", renormalise=False),
    "the first token hidden": MaskTokens("bos", from_layer=1),
    "a later token hidden": MaskTokens((4,)),
    "an ablated head": AblateHeads({1: [2]}),
    "an extra token": ExtraTokens(),
    "two extra tokens, seen late": ExtraTokens(2, visible_from_layer=1, copies=2.0),
    "a register": TestTimeRegister(NEURONS),
    "three registers": TestTimeRegister(NEURONS, 3, scale=(1.0, 2.0, 0.5)),
    "a register as in the reference": TestTimeRegister(NEURONS, semantics="reference"),
    "a register and a bias": TestTimeRegister(NEURONS) + BIAS,
    "neurons moved to a row": ExtraTokens() + MoveNeurons(NEURONS, "test_time_registers"),
}
every_family = pytest.mark.parametrize("family", FAMILIES)
every_example = pytest.mark.parametrize("example", EXAMPLES)


@cache
def model(family: str) -> HookedLM:
    return HookedLM.wrap(random_lm(family))


def ids(n: int = 3, length: int = 9) -> Tensor:
    return torch.randint(0, 50, (n, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def output(hooked: HookedLM, arm: Intervention, tokens: Tensor) -> Tensor:
    with hooked.intervened(arm):
        return hooked(tokens)


# ---------------------------------------------------------------------- laws


@every_family
def test_the_empty_intervention_is_bit_identical(family):
    hooked = model(family)
    assert torch.equal(output(hooked, Empty(), ids()), hooked(ids()))


@every_family
@every_example
def test_texts_are_edited_one_by_one_and_tokens_do_not_learn_of_later_ones(family, example):
    hooked, arm = model(family), EXAMPLES[example]
    texts = ids()
    texts[1] = torch.cat((texts[0, :6], 49 - texts[0, 6:]))
    found = output(hooked, arm, texts)
    assert found.shape == (3, 9, 50) and not torch.allclose(found, hooked(texts), atol=1e-6)
    torch.testing.assert_close(found[0, :6], found[1, :6], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[2:], output(hooked, arm, texts[2:]), rtol=1e-4, atol=1e-5)


@every_example
def test_what_is_lifted_is_gone(example):
    hooked = model("llama")
    expected = hooked(ids())
    output(hooked, EXAMPLES[example], ids())
    assert torch.equal(hooked(ids()), expected)
    assert not any(point.has_hooks() for point in hooked.hook_dict.values())


@every_family
def test_an_intervention_is_its_parts_one_inside_the_other(family):
    hooked, first, then = model(family), TestTimeRegister(NEURONS), BIAS
    with hooked.intervened(first), hooked.intervened(then):
        nested = hooked(ids())
    assert torch.equal(nested, output(hooked, first + then, ids()))


# ---------------------------------------------------------------------- registers and positions


@every_family
def test_the_register_takes_the_first_tokens_activation_and_leaves_none(family):
    hooked = model(family)
    _, plain = hooked.run_with_cache(ids())
    with hooked.intervened(TestTimeRegister({1: [3, 50]})):
        _, cache = hooked.run_with_cache(ids())
    post = cache["post", 1][..., [3, 50]]
    assert (post[:, 1:] == 0).all() and cache.layout.n_test_time_registers == 1
    assert plain["post", 1].shape[1] + 1 == post.shape[1] and (post[:, 0] != 0).all()


@every_family
def test_a_hidden_token_in_front_changes_nothing(family):
    hooked = model(family)
    hidden = ExtraTokens(2, visible_from_layer=LAYERS)
    torch.testing.assert_close(output(hooked, hidden, ids()), hooked(ids()), rtol=1e-5, atol=1e-6)


@every_family
def test_a_token_in_front_leaves_the_texts_positions_as_they_are(family):
    """The source itself, given one more row at position 0 and the text's own positions."""
    hooked, tokens = model(family), ids()[:, :5]  # windows of the source take no row more
    trunk = hooked.source.base_model
    rows = hooked.source.get_input_embeddings()(tokens)
    extra = torch.zeros_like(rows[:, :1])
    positions = torch.tensor([[0, *range(tokens.shape[1])]])
    if family == "gpt2":  # its register has no position: take away what the source will add
        extra = extra - trunk.wpe.weight[0]
    expected = hooked.source(
        inputs_embeds=torch.cat((extra, rows), dim=1),
        position_ids=positions,
        attention_mask=torch.ones(3, tokens.shape[1] + 1, dtype=torch.long),
    ).logits[:, 1:]
    found = output(hooked, ExtraTokens(), tokens)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@every_family
def test_a_registers_own_key_and_value_as_a_bias_are_the_frozen_register(family):
    hooked, register = model(family), TestTimeRegister(NEURONS)
    with hooked.intervened(register):
        expected, cache = hooked.run_with_cache(ids(1))
    k, v = (torch.stack([cache[name, layer][0, 0] for layer in range(LAYERS)]) for name in "kv")
    frozen = ZeroNeurons(NEURONS) + AttentionBias(k.detach(), v.detach())
    torch.testing.assert_close(output(hooked, frozen, ids(1)), expected, rtol=1e-4, atol=1e-5)


@every_family
def test_a_bias_of_no_weight_is_plain_attention(family):
    hooked = model(family)
    weightless = AttentionBias(BIAS.k, BIAS.v, copies=1e-30)
    torch.testing.assert_close(
        output(hooked, weightless, ids()), hooked(ids()), rtol=1e-4, atol=1e-5
    )


@every_family
def test_copies_of_a_token_weigh_as_one_that_counts_as_many(family):
    hooked = model(family)
    torch.testing.assert_close(
        output(hooked, ExtraTokens(copies=2.0), ids()),
        output(hooked, ExtraTokens(2), ids()),
        rtol=1e-4,
        atol=1e-5,
    )


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "arm",
    [
        MeanNeurons(NEURONS),
        ShuffleNeurons(NEURONS),
        NoiseNeurons(NEURONS),
        AblateHeads({0: [1]}, "mean"),
        ExtraTokens(init="patch_mean"),
        TestTimeRegister(NEURONS, search="all"),
        TestTimeRegister(NEURONS, fill="mean"),
        ZeroNeurons(NEURONS) + MoveNeurons({0: [1]}, "bos", search="all"),
    ],
    ids=str,
)
def test_what_would_tell_tokens_of_later_ones_is_refused(arm):
    with (
        pytest.raises(InterventionError, match="would learn of those after them"),
        model("llama").intervened(arm),
    ):
        pass


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (MaskTokens(((0, 0),)), "reads texts, which have no patch grid"),
        (DeleteTokens(Outliers(3.0, layer=0), 1), "reads texts, which have no patch grid"),
        (MaskTokens("patches"), "has no patches.*Select 'bos', 'text' or 'all'"),
        (MaskTokens("cls"), "has no cls.*0 test-time registers, BOS, 63 text tokens"),
        (MaskTokens(LargestNorms(2, 0), 1), "known at the end of a text only"),
        (ZeroNeurons({3: [0]}), "it has layers 0 to 2"),
        (KnockoutAttention("all", "bos"), "left without any key"),
    ],
    ids=str,
)
def test_what_a_text_does_not_have_is_refused(arm, message):
    with pytest.raises(InterventionError, match=message):
        output(model("llama"), arm, ids())
