"""The no-op of the closed-form model: its rate, its constant, its onset and its floor."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from theory_strategies import general_settings, law, past_onset, plain_settings, seeds, strengths

from ttreg_interp.theory.assumptions import Assumptions, Setting, draw
from ttreg_interp.theory.noop import CLS, REGISTER, move_neuron
from ttreg_interp.theory.noop_norm import draw_normed
from ttreg_interp.theory.parts import TheoryError
from ttreg_interp.theory.propositions import key_value


def log_slope(errors: torch.Tensor, at: torch.Tensor) -> float:
    return float((errors[1] / errors[0]).log() / (at[1] - at[0]))


@law
@given(plain_settings(form="token"), seeds)
def test_token_form_the_log_error_falls_with_slope_minus_c(setting, seed):
    model = draw(setting, seed=seed)
    x_cls = model.first_block(strengths(1))[0, CLS]
    c = float(x_cls @ (model.u1 + model.u1.norm() ** 2 * model.u2))
    at = past_onset(model, 12, 18)
    assert model.rate().tolist() == pytest.approx([c], rel=1e-9)
    assert log_slope(model.error(at), at) == pytest.approx(-c, rel=0.01)


@law
@given(plain_settings(form="gain"), seeds)
def test_gain_form_the_log_error_falls_with_slope_minus_activation_times_alignment(setting, seed):
    model = draw(setting, seed=seed)
    x_cls = model.first_block(strengths(1))[0, CLS]
    c = float(model.u1.norm() ** 2 * (x_cls @ model.u2))
    at = past_onset(model, 12, 18)
    assert model.rate().tolist() == pytest.approx([c], rel=1e-9)
    assert log_slope(model.error(at), at) == pytest.approx(-c, rel=0.01)


@law
@given(general_settings(), seeds)
def test_the_error_is_the_leading_error_with_any_heads_sinks_biases_and_activation(setting, seed):
    model = draw(setting, seed=seed)
    at = past_onset(model, 12, 18)
    assert model.error(at).tolist() == pytest.approx(model.leading_error(at).tolist(), rel=0.01)


@law
@given(general_settings(), seeds)
def test_a_sink_is_invisible_to_the_last_mlp_and_the_head(setting, seed):
    model = draw(setting, seed=seed)
    at = strengths(1, 100)
    assert (model.saturated_error(at) < 1e-11 * at).all()


@law
@given(general_settings(activation="relu"), seeds)
def test_at_the_onset_the_sinks_hold_half_of_the_attention(setting, seed):
    model = draw(replace(setting, sinks=(1.0,)), seed=seed)
    for head, onset in enumerate(model.onset().tolist()):
        # Below this strength a register neuron with a bias is not on its asymptote yet.
        if onset > 0.25:
            held = model.run(strengths(onset)).pattern[0, head, CLS, model.is_sink].sum()
            assert float(held) == pytest.approx(0.5, abs=1e-6)


@law
@given(plain_settings(form="token"), seeds)
def test_attention_of_cls_to_itself_delays_the_noop_and_leaves_the_rate_alone(setting, seed):
    model = draw(setting, seed=seed)
    rest = model.rest.clone()
    plane = torch.linalg.qr(torch.stack([model.u1, model.u2], dim=1))[0]
    rest[CLS] = 3 * rest[CLS] - 2 * plane @ plane.T @ rest[CLS]
    louder = replace(model, rest=rest)
    x1 = louder.first_block(strengths(1))[0]
    logits = x1[:-1] @ x1[CLS]
    assert louder.rate().tolist() == pytest.approx(model.rate().tolist(), rel=1e-9)
    assert float(louder.onset()) == pytest.approx(
        float(logits.logsumexp(0) / louder.rate()), rel=1e-6
    )
    assert float(louder.onset()) > float(x1[CLS].square().sum() / louder.rate()) * (1 - 1e-9)


def test_every_token_has_its_own_rate():
    model = draw(Setting(tokens=5))
    rates = [float(model.rate(query=query)) for query in range(4)]
    assert len({round(rate, 6) for rate in rates}) == 4
    for query, rate in enumerate(rates):
        at = past_onset(model, 12, 18, query=query)
        assert log_slope(model.error(at, query=query), at) == pytest.approx(-rate, rel=0.01)


def test_the_slowest_head_sets_the_rate():
    model = draw(Setting(heads=4, attention="generic"))
    at = past_onset(model, 16, 18)
    assert log_slope(model.error(at), at) == pytest.approx(-float(model.rate().min()), rel=0.02)


def test_the_strongest_of_several_sinks_sets_the_rate_and_equal_ones_only_come_earlier():
    one, weaker, equal = (draw(Setting(sinks=sinks, tokens=5 + len(sinks)), seed=3)
                          for sinks in ((1.0,), (0.5, 1.0), (1.0, 1.0, 1.0)))  # fmt: skip
    rest = torch.cat([one.rest, one.rest[-1:], one.rest[-1:]])
    equal = replace(equal, rest=rest, first=one.first)
    assert float(weaker.rate()) == pytest.approx(float(draw(Setting(tokens=7), seed=3).rate()))
    assert float(equal.rate()) == pytest.approx(float(one.rate()))
    assert float(one.onset() - equal.onset()) == pytest.approx(
        float(torch.tensor(3.0).log() / one.rate())
    )


@law
@given(plain_settings(form="token"), seeds)
def test_token_form_zeroing_the_neuron_slows_the_noop_but_does_not_break_it(setting, seed):
    model = draw(setting, seed=seed)
    c = float(model.first_block(strengths(1), "zeroed")[0, CLS] @ model.u1)
    at = past_onset(model, 12, 18, neuron="zeroed")
    towards_u1 = model.u1 / model.u1.norm() + model.u1.norm() * model.u2
    assert 0 < c < float(model.rate())
    assert float(model.rate("zeroed") / model.rate()) == pytest.approx(
        float(1 / towards_u1.square().sum())
    )
    assert log_slope(model.error(at, "zeroed"), at) == pytest.approx(-c, rel=0.01)


@law
@given(plain_settings(form="gain"), seeds)
def test_gain_form_zeroing_the_neuron_breaks_the_noop(setting, seed):
    model = draw(setting, seed=seed)
    at = past_onset(model, 1, 20)
    intact, zeroed = model.error(at), model.error(at, "zeroed")
    assert float(zeroed[0]) == pytest.approx(float(zeroed[1]), rel=1e-9)
    assert zeroed[1] > 1e3 * intact[1]


@law
@given(plain_settings(form="gain"), seeds)
def test_gain_form_a_register_takes_the_place_of_the_outlier_at_the_same_rate(setting, seed):
    model = draw(setting, seed=seed)
    at = past_onset(model, 12, 18, neuron="register")
    x1 = model.first_block(at, "register")
    assert model.rate("register").tolist() == pytest.approx(model.rate().tolist(), rel=1e-9)
    assert log_slope(model.error(at, "register"), at) == pytest.approx(
        -float(model.rate()), rel=0.01
    )
    assert x1[:, -1].norm(dim=-1).tolist() == pytest.approx([setting.u1_norm] * 2)
    assert x1[:, REGISTER].norm(dim=-1).tolist() == pytest.approx(
        (at * setting.u1_norm**2 * setting.u2_norm).tolist()
    )


def test_a_register_takes_the_maximum_of_neuron_0_and_no_other_neuron_moves():
    a = strengths(-1.0, 5.0, 0.0, 2.0, 3.0, 5.0, 4.0, 5.0).reshape(1, 4, 2)
    assert move_neuron(a, "intact") is a
    assert move_neuron(a, "zeroed")[0, :, 0].tolist() == [0, 0, 0, 0]
    assert move_neuron(a, "register")[0, :, 0].tolist() == [0, 4, 0, 0]
    assert torch.equal(move_neuron(a, "register")[..., 1], a[..., 1])


def test_token_form_a_register_leaves_the_outlier_where_it_was():
    model = draw(Setting(form="token"))
    x1 = model.first_block(strengths(50), "register")[0]
    assert float(x1[-1].norm()) == pytest.approx(50)


def test_gain_form_a_neuron_that_fires_on_cls_too_makes_the_log_error_fall_quadratically():
    model, fires, step = draw(Setting(form="gain")), 0.3, 3.0
    rest = model.rest.clone()
    rest[CLS] += fires * model.u1
    log_error = replace(model, rest=rest).error(strengths(3, 3 + step, 3 + 2 * step)).log()
    second_difference = log_error[2] - 2 * log_error[1] + log_error[0]
    assert float(second_difference) == pytest.approx(-2 * fires * (1 - fires) * step**2, rel=0.02)


def test_token_form_the_constant_bias_of_the_corollary_alone_has_a_smaller_rate():
    model = draw(Setting(form="token"))
    at = strengths(20, 26)
    x1 = model.first_block(at)
    alpha_v2 = at[:, None] * model.u1.norm() ** 2 * model.u2
    run = model.finish(x1[:, :-1], key_value(model, alpha_v2))
    errors = (run.output[:, CLS] - model.read(x1[:, CLS])).norm(dim=-1)
    c = float(x1[0, CLS] @ model.u2 * model.u1.norm() ** 2)
    assert log_slope(errors, at) == pytest.approx(-c, rel=0.01)
    assert c < 0.9 * float(model.rate())


def test_float32_has_an_error_floor_that_grows_with_the_strength():
    at = strengths(1e3, 1e4, 1e5, 1e6)
    floors = torch.stack(
        [draw(seed=seed, dtype=torch.float32).error(at).double() for seed in range(8)]
    )
    floor = floors.median(dim=0).values
    slope = float((floor[-1] / floor[0]).log10() / 3)
    assert slope == pytest.approx(1, abs=0.25)
    assert (floor < 1e-6 * at).all()
    assert (draw().error(at) < 1e-14 * at).all()


def test_the_same_seed_gives_the_same_model_in_every_precision_and_under_every_assumption():
    model, single = draw(seed=5), draw(seed=5, dtype=torch.float32)
    broken = draw(Setting(assumptions=Assumptions(sink_is_empty=False)), seed=5)
    assert single.rest.dtype == torch.float32
    assert torch.allclose(single.rest.double(), model.rest, atol=1e-6)
    assert torch.equal(broken.rest[:-1], model.rest[:-1])
    assert torch.equal(broken.head, model.head)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("inf"), float("nan")])
def test_a_strength_that_is_not_positive_and_finite_is_refused(beta):
    with pytest.raises(TheoryError, match="must be positive and finite, found"):
        draw().error(strengths(1.0, beta))


def test_a_rate_is_refused_where_a_norm_bounds_the_logits():
    with pytest.raises(TheoryError, match="'rms' norm.*rate_in_key_gain"):
        draw_normed().rate()
