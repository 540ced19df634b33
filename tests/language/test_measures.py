"""Massive activations, sinks and loss: known answers on made tensors, by hand and on planted models."""

from functools import cache, partial

import pytest
import torch
from torch import Tensor

from ttreg_interp.discovery.sink_neurons import find_sink_neurons
from ttreg_interp.errors import DataError, UnsupportedModelError
from ttreg_interp.hooked import HookedLM, load
from ttreg_interp.interventions import (
    AttentionBias,
    ExtraTokens,
    KnockoutAttention,
    SetMassiveActivations,
    TestTimeRegister,
    ZeroNeurons,
)
from ttreg_interp.metrics.language import language_loss, text_tokens
from ttreg_interp.metrics.massive_activations import massive_activations
from ttreg_interp.metrics.sinks import attention_sinks, proxy_weights
from ttreg_interp.testbed.planted_lm import FAMILIES, PlantedLM, planted_lm
from ttreg_interp.testbed.random_lm import random_lm

every_family = pytest.mark.parametrize("family", FAMILIES)


@cache
def planted(family: str, sinks: bool = True) -> tuple[PlantedLM, HookedLM, Tensor]:
    made = planted_lm(family, sinks=sinks)
    return made, HookedLM.wrap(made.module), made.texts(6, 32)


@cache
def plain() -> HookedLM:
    return HookedLM.wrap(random_lm("llama"))


def ids(n: int = 4, length: int = 12) -> Tensor:
    return torch.randint(0, 50, (n, length), generator=torch.Generator().manual_seed(0))


def put(row: int, dim: int, value: float, resid: Tensor, hook) -> Tensor:
    changed = resid.clone()
    changed[:, row, dim] = value
    return changed


# ---------------------------------------------------------------------- massive activations


@every_family
def test_the_planted_massive_activation_is_found_and_nothing_else(family):
    made, model, texts = planted(family)
    found = massive_activations(model, texts)
    assert found.dims == made.dims
    assert (found.step_up, found.step_down) == (made.step_up, made.step_down)
    assert {entry.where for entry in found.entries} == {"first"}
    assert {entry.n_tokens for entry in found.entries} == {6}
    for layer in range(made.step_up, made.step_down):
        values = {entry.dim: entry.value for entry in found.at(layer)}
        assert values == pytest.approx(
            dict(zip(made.dims, (made.value, -made.value), strict=True)), rel=1e-4
        )
        assert found.layers[layer].top[:2] == pytest.approx((made.value, made.value), rel=1e-4)


@pytest.mark.parametrize(
    ("value", "relative", "is_massive"),
    [(2000.0, 1000.0, True), (-2000.0, 1000.0, True), (99.0, 10.0, False), (500.0, 1000.0, False)],
)
def test_both_conditions_must_hold(value, relative, is_massive):
    model = plain()
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", partial(put, 5, 3, value))]):
        found = massive_activations(model, ids(), relative=relative)
    assert found.found == is_massive
    if is_massive:
        entry = found.at(1)[0]
        assert (entry.dim, entry.where, entry.value) == (3, "later", value)
        assert sum(one.n_tokens for one in found.at(1)) == 4


def test_a_model_without_massive_activations_says_so():
    found = massive_activations(plain(), ids())
    assert (found.found, found.step_up, found.step_down, found.dims) == (False, None, None, ())
    assert "No massive activations (|x| > 100 and > 1000 x median)" in str(found)
    assert found.to_dict()["entries"] == ()


def test_massive_activations_that_stay_have_no_step_down():
    model = plain()
    with model.hooks(fwd_hooks=[("blocks.2.hook_resid_post", partial(put, 0, 3, 5000.0))]):
        found = massive_activations(model, ids())
    assert (found.step_up, found.step_down) == (2, None) and "to the end" in found.summary()


@every_family
@pytest.mark.parametrize("carriers", [(5,), (0, 5)], ids=["delimiter", "BOS and delimiter"])
def test_massive_activations_of_delimiters_are_found_between_the_same_blocks(family, carriers):
    made = planted_lm(family, carriers=carriers)
    found = massive_activations(HookedLM.wrap(made.module), made.texts(4, 26))
    assert found.dims == made.dims
    assert (found.step_up, found.step_down) == (made.step_up, made.step_down)
    for layer in range(made.step_up, made.step_down):
        seen = {(entry.token, entry.where): entry for entry in found.at(layer)}
        assert set(seen) == {(str(token), "later" if token else "first") for token in carriers}
        assert seen["5", "later"].n_tokens == 2 * 4
        assert abs(seen["5", "later"].value) == pytest.approx(made.value, rel=0.05)


@every_family
def test_a_register_takes_the_massive_activation_over(family):
    made, model, texts = planted(family)
    with model.intervened(TestTimeRegister(made.truth)):
        found = massive_activations(model, texts)
    assert found.dims == made.dims
    assert {entry.where for entry in found.entries} == {"register"}


# ---------------------------------------------------------------------- sinks


@every_family
def test_the_planted_heads_sink_and_no_others(family):
    made, model, texts = planted(family)
    found = attention_sinks(model, texts)
    expected = {(layer, head) for layer, heads in made.sink_heads.items() for head in heads}
    assert set(found.dormant_heads) == expected and not found.switching_heads
    assert found.at_key == pytest.approx(len(expected) / 24) and found.best_key == 0
    drained = {(row.layer, row.head): row.value_ratio for row in found.heads}
    assert all(drained[place] < 0.05 for place in expected)
    peaks = [layer.peak for layer in found.layers]
    assert all(peak > 100 for peak in peaks[made.step_up : made.step_down])
    assert max(peaks[: made.step_up] + peaks[made.step_down :]) < 3


@every_family
def test_massive_activation_and_sink_come_apart(family):
    made, model, texts = planted(family, sinks=False)
    assert massive_activations(model, texts).dims == made.dims
    assert attention_sinks(model, texts).at_key == 0


def test_the_sink_rate_is_that_of_a_hand_made_pattern():
    """Two heads: one attends to the first token half the time, one always to the query itself."""
    pattern = torch.zeros(1, 4, 4, 4)
    pattern[:, 0] = torch.tensor([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0.5, 0, 0, 0.5]])
    pattern[:, 1:] = torch.eye(4)
    model = plain()
    write = [
        (f"blocks.{layer}.attn.hook_pattern", lambda p, hook: pattern.expand_as(p))
        for layer in range(3)
    ]
    with model.hooks(fwd_hooks=write):
        found = attention_sinks(model, ids(2, 4), epsilon=0.3)
    # alpha of key 0: (1 + .5 + 0 + .5) / 4 = .5 in head 0, (1 + 0 + 0 + 0) / 4 = .25 in the others
    assert [row.attention.estimate for row in found.heads[:2]] == [0.5, 0.25]
    assert found.at_key == 0.25
    # alpha of key 3 is its only query: .5 in head 0, 1 elsewhere
    assert found.rate.per_key.tolist() == [0.25, 0.75, 1.0, 1.0]


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_repeated_tokens_get_uniform_attention_without_learned_positions(family):
    """Theory: equal keys share alike, whatever rotation makes of equal values: only scores differ by
    distance, and without rotation not at all; alpha_0 is the harmonic number over T."""
    model = HookedLM.wrap(random_lm(family))
    repeated = torch.full((2, 16), 7)
    _, cache = model.run_with_cache(repeated, names_filter=lambda name: "resid_post" in name)
    for layer in range(3):  # equal values: every token's stream stays the same
        rows = cache["resid_post", layer]
        torch.testing.assert_close(rows, rows[:, :1].expand_as(rows), rtol=1e-4, atol=1e-4)
    flat = [
        (f"blocks.{layer}.attn.hook_{point}", lambda x, hook: x * 0)
        for layer in range(3)
        for point in ("rot_q", "rot_k")
    ]
    with model.hooks(fwd_hooks=flat):
        found = attention_sinks(model, repeated)
    harmonic = sum(1 / i for i in range(1, 17)) / 16
    assert all(row.attention.estimate == pytest.approx(harmonic) for row in found.heads)
    assert found.at_key == 0 and found.rate.epsilon == 0.3 and found.rate.tokens == 16


def test_learned_positions_tell_repeated_tokens_apart():
    model = HookedLM.wrap(random_lm("gpt2"))
    _, cache = model.run_with_cache(torch.full((1, 16), 7))
    rows = cache["resid_post", 2][0]
    assert (rows - rows[0]).norm(dim=-1)[1:].min() > 0.1


@every_family
def test_the_sink_moves_to_the_register(family):
    made, model, texts = planted(family)
    intact = attention_sinks(model, texts).at_key
    with model.intervened(TestTimeRegister(made.truth)):
        register, bos = (attention_sinks(model, texts, key=key).at_key for key in (0, 1))
    with model.intervened(ZeroNeurons(made.truth) + ExtraTokens()):
        control = attention_sinks(model, texts).at_key
    assert (register, bos, control) == (intact, 0.0, 0.0)


def test_a_bias_takes_attention_that_no_token_gets():
    model = plain()
    zeros = torch.zeros(3, 4, 8)
    with model.intervened(AttentionBias(zeros, zeros, copies=1e6)):
        found = attention_sinks(model, ids())
    assert all(layer.bias_attention > 0.9 for layer in found.layers)
    assert all(row.attention.estimate < 0.1 for row in found.heads)


def test_signed_scores_weigh_by_their_size():
    scores = torch.tensor([[[[2.0, 0.0], [-3.0, 1.0]]], [[[1.0, 0.0], [0.0, 0.0]]]])
    assert proxy_weights(scores)[0, 0].tolist() == [[1.0, 0.0], [0.75, 0.25]]
    assert proxy_weights(scores)[1, 0].tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_a_head_may_switch_between_texts():
    model = plain()

    def write(pattern: Tensor, hook) -> Tensor:
        made = torch.eye(12).expand_as(pattern).clone()
        made[:2, 0] = 0
        made[:2, 0, :, 0] = 1
        return made

    hooks = [(f"blocks.{layer}.attn.hook_pattern", write) for layer in range(3)]
    with model.hooks(fwd_hooks=hooks):
        found = attention_sinks(model, ids(4))
    assert found.switching_heads == ((0, 0), (1, 0), (2, 0)) and not found.dormant_heads
    assert found.heads[0].dormant == 0.5


# ---------------------------------------------------------------------- loss


def test_the_loss_is_that_of_the_source():
    model = plain()
    expected = model.source(input_ids=ids(), labels=ids()).loss.detach()
    found = language_loss(model, ids(), batch_size=3)
    assert found.loss().estimate == pytest.approx(float(expected), rel=1e-5)
    assert found.perplexity().estimate == pytest.approx(float(expected.exp()), rel=1e-5)
    assert found.per_token.shape == (4, 11)


@every_family
def test_massive_activations_work_as_constants(family):
    """Zeroed, the loss rises; set to their mean, it stays (arXiv 2402.17762, Table 3)."""
    made, model, texts = planted(family)

    def loss(values: tuple[float, float]) -> float:
        with model.intervened(SetMassiveActivations(made.step_up, made.dims, values, "bos")):
            return language_loss(model, texts).loss().estimate

    intact = language_loss(model, texts).loss().estimate
    assert loss((made.value, -made.value)) == pytest.approx(intact, abs=1e-4)
    assert loss((0.0, 0.0)) > intact + 0.05


@every_family
def test_a_register_keeps_what_cutting_the_sink_loses(family):
    made, model, texts = planted(family)
    arms = {
        "zeroed": ZeroNeurons(made.truth),
        "cut": KnockoutAttention("text", "bos"),
        "register": TestTimeRegister(made.truth),
    }
    intact = language_loss(model, texts).loss().estimate
    rise = {}
    for name, arm in arms.items():
        with model.intervened(arm):
            rise[name] = language_loss(model, texts).loss().estimate - intact
    assert rise["register"] < 0.4 * min(rise["zeroed"], rise["cut"])


# ---------------------------------------------------------------------- input


def test_texts_are_cut_to_one_length_and_short_ones_counted():
    class Words:
        bos_token_id = 0

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [len(word) for word in text.split()]

        def decode(self, token_ids: list[int]) -> str:
            return "x" * token_ids[0]

    model = HookedLM.wrap(random_lm("gpt2"), Words())
    tokens = text_tokens(model, ["a bb ccc dddd", "a", "dddd ccc bb"], 4)
    assert tokens.ids.tolist() == [[0, 1, 2, 3], [0, 4, 3, 2]] and tokens.n_short == 1
    assert massive_activations(model, ["a bb ccc"] * 2, length=4).n_texts == 2
    with pytest.raises(DataError, match="None of 1 texts has 9 tokens .the longest has 2"):
        text_tokens(model, ["a"], 9)


def test_bad_input_is_told():
    with pytest.raises(DataError, match="key=40: these texts have rows 0 to 11"):
        attention_sinks(plain(), ids(), key=40)
    broken = ("blocks.1.hook_resid_post", lambda x, hook: x * float("nan"))
    for measure in (massive_activations, attention_sinks, language_loss):
        with plain().hooks(fwd_hooks=[broken]), pytest.raises(DataError, match="NaN or infinite"):
            measure(plain(), ids())
    with pytest.raises(UnsupportedModelError, match="the step-up block 0 to 4"):
        planted_lm("gpt2", step_up=5)
    with pytest.raises(UnsupportedModelError, match="carriers are tokens 0 to 63"):
        planted_lm("gpt2", carriers=(64,))


@pytest.mark.parametrize(
    "measure", [massive_activations, attention_sinks, language_loss, find_sink_neurons]
)
def test_what_reads_texts_refuses_models_of_images_and_bare_modules(measure):
    for model in (load("timm:test_vit?random"), plain().source):
        with pytest.raises(
            UnsupportedModelError,
            match=f"{type(model).__name__} is no HookedLM.*tt.find_register_neurons",
        ):
            measure(model, ids(8))


def test_the_planted_model_is_there_by_name():
    assert load("testbed-lm:gpt_neox").cfg.model_name == "testbed-lm:gpt_neox"
    assert not torch.equal(load("testbed-lm:llama/1")(ids()), load("testbed-lm:llama")(ids()))
