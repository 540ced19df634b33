"""Equalities that hold at any strength, and what breaks each of them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from theory_strategies import any_model, law, number, seeds, strengths

from ttreg_interp.theory.assumptions import Assumptions, Setting, draw
from ttreg_interp.theory.noop import CLS, REGISTER, NoOpModel
from ttreg_interp.theory.parts import KeyValue, TheoryError
from ttreg_interp.theory.propositions import (
    copies_are_log_weight,
    key_value,
    null_bias_is_softmax_one,
    outlier_is_bias,
    register_is_bias,
    vanishing_bias,
    without_register,
)

EXACT = 1e-10
some_strength = number(0.2, 30).map(strengths)


def another_image(model: NoOpModel, seed: int) -> NoOpModel:
    """The same model on other tokens, whose content is shuffled and flipped."""
    generator = torch.Generator().manual_seed(seed)
    rest = model.rest.clone()
    rows = torch.nonzero(~model.is_sink)[:, 0]
    plane = torch.linalg.qr(torch.stack([model.u1, model.u2], dim=1))[0]
    content = rest[rows] - rest[rows] @ plane @ plane.T
    signs = torch.randn(len(rows), 1, generator=generator, dtype=rest.dtype).sign()
    rest[rows] += signs * content.flip(0) - content
    return replace(model, rest=rest)


@law
@given(any_model(), some_strength)
def test_an_outlier_patch_is_an_attention_bias_for_all_other_tokens(model, strength):
    assert outlier_is_bias(model, strength).gap < EXACT


@law
@given(any_model(), some_strength)
def test_k_and_v_of_an_image_are_its_own_live_register(model, strength):
    sides = register_is_bias(model, model, strength)
    live = without_register(model.run(strength, "register").output)
    assert sides.gap < EXACT
    assert torch.allclose(sides.right, live, rtol=0, atol=EXACT * float(live.abs().max()))


@law
@given(any_model(), some_strength, seeds)
def test_k_and_v_of_one_image_are_its_frozen_register_on_another(model, strength, seed):
    assert register_is_bias(model, another_image(model, seed), strength).gap < EXACT


@law
@given(any_model(), some_strength, st.integers(1, 9))
def test_copies_of_a_token_are_one_with_log_tau_added_to_its_logit(model, strength, copies):
    assert copies_are_log_weight(model, strength, copies).gap < EXACT


@law
@given(any_model(), some_strength)
def test_a_bias_whose_logit_goes_to_minus_infinity_is_plain_attention(model, strength):
    assert vanishing_bias(model, strength, log_weight=-50.0).gap < EXACT


@law
@given(any_model(), some_strength)
def test_a_null_bias_is_the_softmax_that_may_attend_to_nothing(model, strength):
    assert null_bias_is_softmax_one(model, strength).gap < EXACT


def test_the_gap_of_a_vanishing_bias_is_proportional_to_its_weight():
    # A bias whose value is visible: k', v' of a sink with content.
    model = draw(Setting(assumptions=Assumptions(sink_is_empty=False)))
    near, far = (
        vanishing_bias(model, strengths(0.5), log_weight).gap for log_weight in (-10.0, -20.0)
    )
    assert near / far == pytest.approx(float(torch.tensor(10.0).exp()), rel=0.01)


def test_a_key_that_goes_to_minus_infinity_is_a_sink_for_tokens_turned_away_from_it():
    for aligned, held in ((True, 0.0), (False, 1.0)):
        model = draw(Setting(assumptions=Assumptions(aligned=aligned)))
        x1 = model.first_block(strengths(1))
        bias = key_value(model, x1[:, -1])
        away = KeyValue(-1e3 * bias.key, bias.value)
        assert float(model.finish(x1, away).pattern[0, 0, CLS, -1]) == pytest.approx(held, abs=1e-9)


def test_a_null_bias_is_not_plain_attention():
    model, at = draw(), strengths(0.2)
    assert (null_bias_is_softmax_one(model, at).left - model.run(at).output).abs().max() > 0.01


def test_copies_without_the_log_weight_are_not_one():
    sides = copies_are_log_weight(draw(), strengths(1), copies=4)
    once = copies_are_log_weight(draw(), strengths(1), copies=1)
    assert (sides.left - once.right).abs().max() > 0.01


def test_the_bias_of_one_image_is_not_the_live_register_of_an_image_that_drives_the_neuron_harder():
    model = draw(Setting(form="token"))
    harder = replace(model, sinks=2 * model.sinks)
    frozen = register_is_bias(model, harder, strengths(1)).left
    live = without_register(harder.run(strengths(1), "register").output)
    assert (frozen - live).abs().max() > 1e-3


def test_a_register_that_other_tokens_have_changed_is_not_the_bias():
    model, at = draw(), strengths(1)
    x1 = model.first_block(at, "register")
    changed = x1.clone()
    changed[:, REGISTER] += x1[:, CLS]
    bias = register_is_bias(model, model, at).left
    assert (bias - without_register(model.finish(changed).output)).abs().max() > 0.01


@law
@given(seeds)
def test_gain_form_outlier_register_and_bias_reach_the_same_noop(seed):
    model = draw(Setting(form="gain"), seed=seed)
    at = model.onset("register") + 24 / model.rate()
    bias = key_value(model, model.first_block(at, "register")[:, REGISTER])
    idle = model.read(model.first_block(at)[:, CLS])
    for output in (
        model.run(at).output,
        model.run(at, "register").output,
        model.run(at, "zeroed", bias).output,
    ):
        assert (output[:, CLS] - idle).abs().max() < 1e-7 * float(1 + idle.abs().max())


def test_no_copies_at_all_are_refused():
    with pytest.raises(TheoryError, match="found copies=0; at least one"):
        copies_are_log_weight(draw(), strengths(1), copies=0)
