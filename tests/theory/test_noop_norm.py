"""The closed-form model under norms: what a sink needs there, and at which rates it gets there."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from theory_strategies import law, norm_settings, number, saturated, seeds, strengths, unchecked

from ttreg_interp.theory.noop import CLS, REGISTER
from ttreg_interp.theory.noop_norm import (
    NormSetting,
    draw_normed,
    rate_in_key_gain,
    read_at_scales_of,
    sink_ceiling,
)
from ttreg_interp.theory.parts import MLP, TheoryError, norm_scale, normalise

LARGE = 60.0
"""A key gain at which the attention that misses the sink is below float64."""
norms = st.sampled_from(["rms", "layer"])


@law
@given(norm_settings(key_gain=0.0, query_bias=0.0, alignment=2.0), seeds, number(0, 8))
def test_identity_qk_never_gives_a_sink_more_than_half_at_any_outlier_norm(setting, seed, exponent):
    model = draw_normed(setting, seed=seed)
    run = model.run(strengths(10**exponent))
    normed = normalise(run.x1, model.norm)[0]
    cosine = torch.cosine_similarity(normed[[CLS]], normed[[-1]])
    held = run.pattern[0, 0, CLS]
    assert held[-1] <= sink_ceiling(cosine, setting.d_model)[0] * (1 + 1e-9)
    assert held[-1] <= held[CLS]


def test_with_a_key_gain_the_sink_holds_all_attention():
    held = [float(draw_normed(NormSetting(key_gain=gain)).run(strengths(1e3)).pattern[0, 0, CLS, -1])
            for gain in (0.0, 3.0, 12.0, 30.0)]  # fmt: skip
    assert held == sorted(held)
    assert held[0] < 0.5
    assert held[-1] > 1 - 1e-9


@law
@given(norm_settings(), seeds)
def test_with_key_gain_and_drain_the_error_falls_as_one_over_the_outlier_norm(setting, seed):
    model = saturated(setting, seed)
    at = strengths(1e5, 1e6)
    near, far = model.error(at)
    assert float((near / far).log10()) == pytest.approx(1, rel=0.01)
    assert model.error(at).tolist() == pytest.approx(model.saturated_error(at).tolist(), rel=0.01)


@law
@given(norm_settings(drain=0.0), seeds)
def test_without_the_drain_the_error_stays_and_is_all_in_the_scales_of_the_next_norms(
    setting, seed
):
    model = saturated(setting, seed)
    run = model.run(strengths(1e5, 1e6))
    clean = run.x1[:, CLS]
    update = model.attention(normalise(run.x1, model.norm))[0][:, CLS]
    stays = model.error(strengths(1e5, 1e6))
    at_clean_scales = (read_at_scales_of(model, clean + update, clean) - model.read(clean)).norm(
        dim=-1
    )
    assert float(stays[0]) == pytest.approx(float(stays[1]), rel=0.01)
    assert (stays > 1e-2).all()
    assert float((at_clean_scales[0] / at_clean_scales[1]).log10()) == pytest.approx(1, rel=0.01)


@law
@given(norms, seeds)
def test_without_drain_and_last_mlp_the_output_only_shrinks_by_the_ratio_of_scales(norm, seed):
    model = saturated(NormSetting(norm=norm, drain=0.0), seed)
    silent = MLP(
        *(
            torch.zeros_like(w)
            for w in (model.last.w_in, model.last.w_out, model.last.b_in, model.last.b_out)
        ),
        "relu",
    )
    model = replace(model, last=silent)
    run = model.run(strengths(10), "register")
    update = model.attention(normalise(run.x1, norm))[0]
    shrink = norm_scale(run.x1, norm) / norm_scale(run.x1 + update, norm)
    assert torch.allclose(run.output[:, CLS], (shrink * model.read(run.x1))[:, CLS], atol=1e-12)
    assert 0 < float(shrink[0, CLS]) < 1


def test_without_the_drain_the_harm_falls_with_the_square_of_the_residual_norm():
    errors = [draw_normed(NormSetting(key_gain=LARGE, drain=0.0, alignment=0.0, content=content)).error(strengths(1e9))
              for content in (100.0, 1000.0)]  # fmt: skip
    assert float((errors[0] / errors[1]).log10()) == pytest.approx(2, rel=0.01)


@law
@given(norms, seeds)
def test_with_the_drain_but_no_key_gain_the_error_stays(norm, seed):
    model = draw_normed(NormSetting(norm=norm, key_gain=0.0, query_bias=0.0), seed=seed)
    errors = model.error(strengths(1e5, 1e6))
    assert float(errors[0]) == pytest.approx(float(errors[1]), rel=0.01)
    assert (errors > 1e-2).all()


@law
@given(norm_settings(alignment=0.0), seeds)
def test_the_error_of_a_register_falls_exponentially_in_the_key_gain(setting, seed):
    gains = (20 / setting.query_bias, 26 / setting.query_bias)
    models = [draw_normed(replace(setting, key_gain=gain), seed=seed) for gain in gains]
    errors = [float(model.error(strengths(1), "register")) for model in models]
    leading = [float(model.leading_error(strengths(1), "register")) for model in models]
    slope = math.log(errors[1] / errors[0]) / (gains[1] - gains[0])
    assert slope == pytest.approx(-rate_in_key_gain(models[0]), rel=0.01)
    assert errors == pytest.approx(leading, rel=0.01)


@law
@given(norm_settings(key_gain=12.0), seeds)
def test_a_register_is_a_noop_at_any_outlier_norm_because_it_is_empty(setting, seed):
    model = draw_normed(setting, seed=seed)
    low, high = model.error(strengths(1, 1e6), "register")
    assert float(low) == pytest.approx(float(high), rel=1e-6, abs=1e-12)


@law
@given(norms, seeds)
def test_an_empty_sink_is_as_good_as_a_register(norm, seed):
    model = saturated(NormSetting(norm=norm, sink_content=0.0), seed)
    assert float(model.error(strengths(1e6))) < 1e-5
    assert float(model.saturated_error(strengths(1.0), "register", key=REGISTER)) < 1e-12


@pytest.mark.parametrize(("norm", "broken"), [("rms", False), ("layer", True)])
def test_a_sink_direction_with_a_mean_leaks_under_layernorm_only(norm, broken):
    model = draw_normed(NormSetting(norm=norm, key_gain=LARGE, zero_mean=False))
    at = strengths(1e6)
    assert (float(model.error(at)) > 0.1) == broken
    assert float(model.error(at)) == pytest.approx(float(model.saturated_error(at)), rel=1e-3)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_a_norm_keeps_only_the_direction_and_maps_nothing_to_nothing(kind):
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(normalise(100 * x, kind), normalise(x, kind))
    assert normalise(x, kind).norm(dim=-1).tolist() == pytest.approx([math.sqrt(8)] * 4)
    assert normalise(torch.zeros(1, 8), kind).abs().max() == 0


WRONG = [
    ({"norm": "none"}, "unknown norm 'none'; allowed: 'rms', 'layer'"),
    ({"d_model": 4}, "use d_model >= 5"),
    ({"tokens": 2}, "found neurons=32, outputs=3, tokens=2"),
    ({"drain": 1.5}, "found drain=1.5; allowed: 0"),
    ({"key_gain": -1.0}, "key_gain must not be negative"),
]


@pytest.mark.parametrize(("values", "message"), WRONG)
def test_a_setting_that_cannot_be_built_is_refused_and_says_why(values, message):
    with pytest.raises(TheoryError) as error:
        unchecked(NormSetting(), **values)
    assert message in str(error.value)
