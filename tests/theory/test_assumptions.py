"""Every assumption of the no-op, dropped: the model then fails in the way that is predicted."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from theory_strategies import law, past_onset, seeds, strengths, unchecked

from ttreg_interp.theory.assumptions import Assumptions, Setting, draw
from ttreg_interp.theory.noop import CLS
from ttreg_interp.theory.parts import TheoryError

KERNEL_SWITCHES = ("mlp_blind_to_u1", "mlp_blind_to_u2", "head_blind_to_u1", "head_blind_to_u2")
few = settings(law, max_examples=10)


def without(*names: str, **setting) -> Setting:
    return Setting(assumptions=Assumptions(**dict.fromkeys(names, False)), **setting)


# What attention to the leaking row adds to the output, as the sink grows: exponent 1 or 0.
LEAKS = [
    ("mlp_blind_to_u1", "token", 1, -1),
    ("mlp_blind_to_u2", "token", 1, -1),
    ("head_blind_to_u1", "token", 1, -1),
    ("head_blind_to_u2", "token", 1, -1),
    ("outputs_stay_blind", "token", 1, -1),
    ("others_silent_on_u1", "token", 1, -1),
    ("others_silent_on_nothing", "token", 0, -1),
    ("sink_is_empty", "token", 0, -1),
    ("sink_fires_hardest", "token", 0, 1),
    ("mlp_blind_to_u1", "gain", 0, -1),
    ("mlp_blind_to_u2", "gain", 1, -1),
    ("head_blind_to_u1", "gain", 0, -1),
    ("head_blind_to_u2", "gain", 1, -1),
    ("outputs_stay_blind", "gain", 1, -1),
    ("others_silent_on_u1", "gain", 0, -1),
    ("others_silent_on_nothing", "gain", 0, -1),
    ("sink_is_empty", "gain", 0, -1),
    ("sink_fires_hardest", "gain", 0, 1),
]


@pytest.mark.parametrize(("name", "form", "growth", "key"), LEAKS)
@few
@given(seed=seeds)
def test_without_it_the_sink_leaks_and_the_error_stays_or_grows(name, form, growth, key, seed):
    model = draw(without(name, form=form), seed=seed)
    assume(float(model.rate()) > 0.01)
    at = past_onset(model, 40) * strengths(1, 100, 400)
    error, leak = model.error(at), model.saturated_error(at, key=key)
    assert error.tolist() == pytest.approx(leak.tolist(), rel=1e-6)
    assert float((error[2] / error[1]).log() / math.log(4)) == pytest.approx(growth, abs=0.02)
    assert (error > 1e-3).all()


@pytest.mark.parametrize("form", ["token", "gain"])
@few
@given(seed=seeds)
def test_without_alignment_the_sink_repels_and_attention_goes_on_reading_the_others(form, seed):
    model = draw(without("aligned", form=form), seed=seed)
    at = 40 / model.rate().abs() * strengths(1, 10)
    x1 = model.first_block(at)
    others = model.finish(x1[:, :-1]).output[:, CLS] - model.read(x1[:, CLS])
    assert float(model.rate()) < 0
    assert float(model.onset()) == math.inf
    assert (model.run(at).pattern[:, 0, CLS, -1] < 1e-12).all()
    assert model.error(at).tolist() == pytest.approx(others.norm(dim=-1).tolist(), rel=1e-9)
    assert (model.error(at) > 1e-3).all()


@few
@given(seed=seeds)
def test_with_one_head_turned_away_that_head_goes_on_reading_the_others(seed):
    model = draw(without("every_head_aligned", heads=2, attention="generic"), seed=seed)
    at = 60 / model.rate().abs().min() * strengths(1, 10)
    x1, maps = model.first_block(at), model.attention
    first = replace(maps, **{w: getattr(maps, w)[:1] for w in ("w_q", "w_k", "w_v", "w_o", "b_q")})
    others = replace(model, attention=first).finish(x1[:, :-1]).output[:, CLS]
    expected = (others - model.read(x1[:, CLS])).norm(dim=-1)
    assert float(model.rate()[0]) < 0 < float(model.rate()[1])
    assert model.error(at).tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert (expected > 1e-3).all()


@few
@given(seed=seeds)
def test_with_an_activation_that_fires_at_zero_the_sink_is_not_empty(seed):
    model = draw(Setting(activation="softplus"), seed=seed)
    at = past_onset(model, 40) * strengths(1, 10)
    assert model.error(at).tolist() == pytest.approx(model.saturated_error(at).tolist(), rel=1e-6)
    assert (model.error(at) > 1e-3).all()


@few
@given(seed=seeds)
def test_generic_wide_maps_see_the_sink(seed):
    model = draw(without("rank_deficient", *KERNEL_SWITCHES), seed=seed)
    at = past_onset(model, 40) * strengths(100, 1000)
    error = model.error(at)
    assert float(error[1] / error[0]) == pytest.approx(10, rel=0.01)


@few
@given(seed=seeds)
def test_narrow_maps_have_a_kernel_without_being_projected(seed):
    model = draw(without("rank_deficient", neurons=6, outputs=3), seed=seed)
    readers = torch.cat([model.last.w_in, model.head], dim=1)
    at = past_onset(model, 12, 18)
    assert torch.linalg.matrix_rank(readers) == 9
    assert (torch.stack([model.u1, model.u2]) @ readers).abs().max() < 1e-12
    assert model.error(at).tolist() == pytest.approx(model.leading_error(at).tolist(), rel=0.01)


WRONG = [
    ({"form": "tokens"}, "unknown form 'tokens'; allowed: 'token', 'gain'"),
    ({"attention": "linear"}, "unknown attention 'linear'; allowed: 'identity', 'generic'"),
    ({"activation": "tanh"}, "unknown activation 'tanh'; allowed: relu, gelu, silu, softplus"),
    ({"d_model": 3}, "d_model=3 leaves no room beside the plane of u1 and u2; use d_model >= 4"),
    ({"neurons": 1}, "use at least 2 neurons and 1 output"),
    ({"sinks": ()}, "give one positive number"),
    ({"sinks": (1.0, -1.0)}, "give one positive number"),
    ({"tokens": 2}, "tokens=2 is too few for [CLS], a patch and 1 sink(s); use tokens >= 3"),
    ({"heads": 3, "attention": "generic"}, "d_model=16 does not split into heads=3"),
    ({"heads": 2}, "found heads=2; use attention='generic'"),
    ({"heads": 8, "attention": "generic"}, "use fewer heads or d_model >= 24"),
    ({"u1_norm": 0.0}, "both must be positive"),
    ({"angle": 2.0}, "allowed: 0 < angle <= pi/2"),
    ({"alignment": -0.3}, "Assumptions(aligned=False)"),
    ({"activation": "gelu", "biases": True}, "only with relu, found 'gelu'"),
    ({"assumptions": Assumptions(rank_deficient=False)}, "neurons=32 plus outputs=3 leave 0"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_a_setting_that_cannot_be_built_is_refused_and_says_why(values, message):
    with pytest.raises(TheoryError) as error:
        unchecked(Setting(), **values)
    assert message in str(error.value)
