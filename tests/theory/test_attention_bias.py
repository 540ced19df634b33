"""k' and v': equal to a frozen register, absent at -inf, fitted three ways, kept with provenance."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interventions import models as tiny
from safetensors.torch import load_file, save_file

from ttreg_interp.errors import ArtifactError, ContractError, DataError, InterventionError
from ttreg_interp.hooked import HookedLM, HookedViT
from ttreg_interp.interventions import (
    AttentionBias,
    ExtraTokens,
    NeuronSet,
    TestTimeRegister,
    ZeroNeurons,
    mean_key_value,
)
from ttreg_interp.testbed import photograph_tensor, planted_vit
from ttreg_interp.testbed.random_lm import random_lm
from ttreg_interp.theory.attention_bias import (
    AttentionBiasFit,
    FitOptions,
    fit_attention_bias,
    relative_changes,
)
from ttreg_interp.theory.batches import Batches
from ttreg_interp.theory.bias_methods import Source, least_squares

NEURONS = NeuronSet.of({0: [3, 50], 1: [7, 20, 90]})
ROTATED = "timm Eva with rotation"
LAYERS_OF_TINY = tuple(range(tiny.N_LAYERS))


def output(model, inputs, *arms):
    with torch.no_grad():
        if not arms:
            return model(inputs)
        with model.intervened(*arms):
            return model(inputs)


def bias_of(model, images):
    source = Source.register(model, TestTimeRegister(NEURONS))
    return mean_key_value(model, [images], source.arm, source.row, LAYERS_OF_TINY)


def frozen_register(model, image):
    """The register of one image held at its value in every layer, by plain hooks."""
    row, seen = model.layout().n_prefix, {}
    names = [f"blocks.{layer}.hook_resid_pre" for layer in LAYERS_OF_TINY]

    def keep(resid, hook):
        seen[hook.name] = resid[:, row].detach()

    def hold(resid, hook):
        resid = resid.clone()
        resid[:, row] = seen[hook.name]
        return resid

    with torch.no_grad(), model.intervened(TestTimeRegister(NEURONS)):
        model.run_with_hooks(image, fwd_hooks=[(name, keep) for name in names])

    def run(images):
        with torch.no_grad(), model.intervened(ZeroNeurons(NEURONS) + ExtraTokens()):
            return model.run_with_hooks(images, fwd_hooks=[(name, hold) for name in names])

    return run


# ---------------------------------------------------------------------- equalities


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_k_and_v_of_one_image_are_its_frozen_register_on_any_image(layout):
    model = tiny.model(layout, torch.float64)
    image, others = tiny.images(1, 1, torch.float64), tiny.images(3, 2, torch.float64)
    arm = ZeroNeurons(NEURONS) + bias_of(model, image)
    frozen = frozen_register(model, image)
    for images in (image, others):
        torch.testing.assert_close(output(model, images, arm), frozen(images), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", tiny.LAYOUTS)
def test_k_and_v_of_one_image_are_its_live_register_on_that_image(layout):
    model, image = tiny.model(layout, torch.float64), tiny.images(1, 1, torch.float64)
    arm = ZeroNeurons(NEURONS) + bias_of(model, image)
    live = output(model, image, TestTimeRegister(NEURONS))
    torch.testing.assert_close(output(model, image, arm), live, rtol=1e-6, atol=1e-6)


def test_k_and_v_of_another_image_are_not_the_live_register():
    model, images = tiny.model("timm with [CLS]"), tiny.images(2, 1)
    arm = ZeroNeurons(NEURONS) + bias_of(model, images[:1])
    live = output(model, images[1:], TestTimeRegister(NEURONS))
    assert (output(model, images[1:], arm) - live).norm() > 1e-4 * live.norm()


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(1, 40))
def test_as_the_logit_of_k_goes_to_minus_infinity_the_bias_vanishes(seed, size):
    model, images = tiny.model("timm with [CLS]", torch.float64), tiny.images(2, 0, torch.float64)
    generator = torch.Generator().manual_seed(seed)
    k, v = torch.randn(2, tiny.N_LAYERS, tiny.N_HEADS, 16, generator=generator, dtype=torch.float64)
    plain = output(model, images)
    changes = [
        float((output(model, images, AttentionBias(k, size * v, copies=copies)) - plain).norm())
        for copies in (1e-2, 1e-5, 1e-30)
    ]
    assert changes[0] > changes[1] > changes[2]
    assert changes[2] < 1e-12 * float(plain.norm())


def test_a_key_turned_away_from_all_queries_is_plain_attention():
    model, images = tiny.model("timm with [CLS]", torch.float64), tiny.images(1, 0, torch.float64)
    direction = _all_queries_lean_towards(model, images, layer=1)
    value = torch.ones_like(direction)
    plain = output(model, images)
    away, towards = (
        output(model, images, AttentionBias(sign * 1e4 * direction, value, layers=(1,)))
        for sign in (-1, 1)
    )
    torch.testing.assert_close(away, plain, rtol=1e-12, atol=1e-12)
    assert (towards - plain).norm() > 0.01 * plain.norm()


def _all_queries_lean_towards(model, images, layer):
    """A vector with which every query of a layer has the product 1, [1, head, d_head]."""
    seen = {}
    hook = (f"blocks.{layer}.attn.hook_q", lambda q, hook: seen.update(q=q.detach()))
    model.run_with_hooks(images, fwd_hooks=[hook])
    queries = seen["q"].flatten(0, 1).transpose(0, 1)  # [head, row, d_head]
    ones = torch.ones(*queries.shape[:2], 1, dtype=queries.dtype)
    direction = torch.linalg.lstsq(queries, ones).solution
    assert (queries @ direction > 0).all()
    return direction.squeeze(-1)[None]


@pytest.mark.parametrize("copies", [2, 5])
def test_tau_copies_of_a_bias_are_one_with_log_tau_on_its_logit(copies):
    model, images = tiny.model("timm with [CLS]", torch.float64), tiny.images(2, 0, torch.float64)
    bias = bias_of(model, images)
    weighted = replace(bias, copies=float(copies))
    repeated = [AttentionBias(bias.k, bias.v) for _ in range(copies)]
    torch.testing.assert_close(
        output(model, images, weighted), output(model, images, *repeated), rtol=1e-9, atol=1e-9
    )


# ---------------------------------------------------------------------- the three fits


@pytest.fixture(scope="module")
def planted():
    vit = planted_vit(image_size=96, depth=6)
    return HookedViT.wrap(vit.module), NeuronSet.of(vit.truth), photograph_tensor(96)


@pytest.fixture(scope="module")
def fitted(planted):
    model, neurons, images = planted
    options = {"mean": {}, "least_squares": {"batch_size": 4}, "trained": {"steps": 8}}
    return {
        method: fit_attention_bias(model, images, neurons, method, FitOptions(**chosen))
        for method, chosen in options.items()
    }


@pytest.mark.parametrize("method", ["mean", "least_squares", "trained"])
def test_every_fit_keeps_cls_of_held_out_images_where_zeroing_breaks_it(fitted, method):
    held_out = fitted[method].held_out
    assert held_out.n_images == 4 and fitted[method].n_images == 12
    assert held_out.bias.high < 0.1 and held_out.zeroed.low > 0.5
    assert held_out.bias_minus_zeroed.high < -0.4


@pytest.mark.parametrize("method", ["least_squares", "trained"])
def test_fitting_brings_the_output_closer_than_the_mean_does(fitted, method):
    assert fitted[method].held_out.bias.estimate < fitted["mean"].held_out.bias.estimate


def test_the_trained_fit_lowers_its_loss_and_leaves_the_weights_alone(planted, fitted):
    model = planted[0]
    losses = fitted["trained"].provenance["mean_loss_of_a_tenth_of_the_steps"]
    assert losses["last"] < losses["first"]
    assert all(parameter.grad is None for parameter in model.parameters())
    fitted["trained"].check_model(model)


def test_a_fit_gives_the_same_twice(planted, fitted):
    model, neurons, images = planted
    again = fit_attention_bias(model, images, neurons, "trained", FitOptions(steps=8))
    assert again == fitted["trained"]


@pytest.mark.parametrize("layout", ["timm with [CLS]", ROTATED])
def test_least_squares_is_stationary(layout):
    """No v' near the fitted one brings the heads of its layer closer to the intact model's."""
    model, images = tiny.model(layout, torch.float64), tiny.images(4, 3, torch.float64)
    source, layers = Source.register(model, TestTimeRegister(NEURONS)), (1,)
    start = mean_key_value(model, [images], source.arm, source.row, layers)
    found = least_squares(model, [images], start, NEURONS, source, "intact", ridge=0.0)

    def loss(v):
        z = {}
        keep = lambda name: ("blocks.1.attn.hook_z", lambda x, hook: z.update({name: x.detach()}))  # noqa: E731
        model.run_with_hooks(images, fwd_hooks=[keep("intact")])
        with model.intervened(ZeroNeurons(NEURONS) + AttentionBias(start.k, v, layers)):
            model.run_with_hooks(images, fwd_hooks=[keep("biased")])
        return float((z["biased"] - z["intact"]).square().sum())

    best = found.v.tensor.double()
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        step = 0.05 * torch.randn(best.shape, generator=generator, dtype=torch.float64)
        assert loss(best) < min(loss(best + step), loss(best - step))
    assert loss(best) < loss(start.v.tensor.double())


def test_a_register_as_teacher_is_followed_exactly_on_one_image():
    model, image = tiny.model("timm with [CLS]", torch.float64), tiny.images(1, 1, torch.float64)
    source = Source.register(model, TestTimeRegister(NEURONS))
    start = mean_key_value(model, [image], source.arm, source.row, LAYERS_OF_TINY)
    wrong = replace(start, v=torch.zeros_like(start.v.tensor))
    found = least_squares(model, [image], wrong, NEURONS, source, "register", ridge=0.0)
    torch.testing.assert_close(found.v.tensor, start.v.tensor, rtol=1e-3, atol=1e-4)


def test_training_that_makes_things_worse_is_told(planted):
    model, neurons, images = planted
    options = FitOptions(steps=2, learning_rate=0.3)
    with pytest.raises(DataError, match="made the loss larger, from .* after 2 steps.*more steps"):
        fit_attention_bias(model, images, neurons, "trained", options)


def test_layers_limits_the_bias(planted):
    model, neurons, images = planted
    fit = fit_attention_bias(model, images, neurons, "mean", FitOptions(layers=(4, 5)))
    assert fit.layers == (4, 5) and len(fit.k) == 2
    assert fit.held_out.bias.high < 0.2


# ---------------------------------------------------------------------- language models


@pytest.mark.parametrize(
    ("family", "method"), [("gpt2", "mean"), ("llama", "least_squares"), ("gpt_neox", "trained")]
)
def test_a_language_model_gets_the_bias_of_its_first_token(family, method):
    model = HookedLM.wrap(random_lm(family))
    texts = torch.randint(0, 50, (24, 8), generator=torch.Generator().manual_seed(0))
    texts[:, 0] = 0
    fit = fit_attention_bias(
        model, texts, {1: [3, 5]}, method, FitOptions(row=0, steps=10, held_out=0.5)
    )
    assert fit.k.shape == (3, 4, 8)
    assert fit.image_size is None and fit.held_out.register is None
    first = {}
    model.run_with_hooks(
        texts[:1], fwd_hooks=[("blocks.0.attn.hook_k", lambda k, hook: first.update(k=k[0, 0]))]
    )
    if method != "trained":
        torch.testing.assert_close(fit.k[0], first["k"].detach())
    changes = relative_changes(model, Batches.of(model, texts), {"bias": fit.intervention()})
    assert changes["bias"].isfinite().all()


def test_the_trained_bias_of_a_language_model_is_better_than_the_mean():
    model = HookedLM.wrap(random_lm("llama"))
    texts = torch.randint(0, 50, (24, 8), generator=torch.Generator().manual_seed(0))
    by = {
        method: fit_attention_bias(
            model, list(texts.split(6)), {1: [3, 5]}, method, FitOptions(row=0, steps=25)
        ).held_out.bias
        for method in ("mean", "trained")
    }
    assert by["trained"].estimate < by["mean"].estimate


# ---------------------------------------------------------------------- files


def test_a_saved_fit_is_read_back_equal_and_runs_the_same(planted, fitted, tmp_path):
    model, _, images = planted
    read = AttentionBiasFit.load(
        fitted["least_squares"].save(tmp_path / "deep" / "bias.safetensors")
    )
    assert read == fitted["least_squares"]
    assert torch.equal(
        output(model, images[:2], read.intervention()),
        output(model, images[:2], fitted["least_squares"].intervention()),
    )
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["bias.safetensors"]


def test_a_fit_says_where_it_comes_from(fitted):
    fit = fitted["mean"]
    assert fit.provenance["versions"]["torch"] == torch.__version__.split("+")[0]
    assert len(fit.provenance["images_digest"]) == 64
    assert fit.provenance["options"]["held_out"] == 0.25
    assert "mean, 6 layers, 12 images; held-out change 0.0" in repr(fit)


def test_a_fit_is_refused_on_another_model_or_resolution_unless_told_otherwise(
    planted, fitted, caplog
):
    model, fit = planted[0], fitted["mean"]
    other = HookedViT.wrap(planted_vit(image_size=96, depth=6, seed=1).module)
    assert fit.check_model(model) is fit
    with pytest.raises(
        ArtifactError, match="with weights [0-9a-f]{12}, and .* has [0-9a-f]{12}.*anew"
    ):
        fit.check_model(other)
    with pytest.raises(
        ArtifactError, match=r"at \(96, 96\) pixels, and the images have \(112, 112\)"
    ):
        fit.check_model(model, image_size=(112, 112))
    assert not caplog.records
    assert fit.check_model(other, strict=False) is fit
    assert "strict=False" in caplog.text


def _spoil_schema(path):
    save_file(load_file(path), path, {"attention_bias": '{"schema": "attention-bias/0"}'})


def _spoil_body(path):
    save_file(load_file(path), path, {"attention_bias": '{"schema": "attention-bias/1"}'})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "Cannot read"),
        (lambda path: path.write_bytes(b"nothing"), "Cannot read"),
        (_spoil_schema, "schema 'attention-bias/0'; readable is attention-bias/1"),
        (_spoil_body, "damaged: KeyError"),
    ],
)
def test_a_damaged_file_is_refused(fitted, tmp_path, spoil, message):
    path = fitted["mean"].save(tmp_path / "bias.safetensors")
    spoil(path)
    with pytest.raises(ArtifactError, match=message):
        AttentionBiasFit.load(path)


def test_copies_of_a_fit_count(fitted):
    assert "counting as 4 keys" in fitted["mean"].intervention(copies=4.0).describe()


# ---------------------------------------------------------------------- bad input


def fit_tiny(model=None, images=None, neurons=NEURONS, method="mean", held_out=None, **options):
    model = model or tiny.model("timm with [CLS]")
    images = tiny.images(16) if images is None else images
    return fit_attention_bias(model, images, neurons, method, FitOptions(**options), held_out)


def _with_nan():
    model = HookedViT.wrap(tiny.LAYOUTS["timm with [CLS]"]())
    model.source.blocks[1].attn.qkv.bias.data[40] = float("nan")
    return model


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (partial(fit_tiny, images=tiny.images(4)), DataError, "Found 3 .*at least 8 are needed"),
        (partial(fit_tiny, held_out=tiny.images(1)), DataError, "Found 1 .*held out; at least 2"),
        (partial(fit_tiny, images=iter([tiny.images(9)])), DataError, "iterator"),
        (partial(fit_tiny, neurons={7: [0]}), InterventionError, "Layer 7, neuron 0 is not in"),
        (partial(fit_tiny, layers=(9,)), InterventionError, "Layer 9 is not in"),
        (partial(fit_tiny, register=ExtraTokens(2)), DataError, "adds 2 rows"),
        (partial(fit_tiny, row=0, teacher="register"), DataError, "leave out register="),
        (lambda: fit_tiny(model=_with_nan()), ContractError, "NaN or inf at blocks.1.attn.hook_k"),
        (lambda: FitOptions(steps=0), DataError, "steps=0 at least 1"),
    ],
)
def test_bad_input_is_told(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_images_of_another_resolution_held_out_are_refused():
    layout = "timm with 4 trained registers"  # it takes any size
    with pytest.raises(DataError, match=r"Fitted on .*\(32, 32\) pixels, held out \(32, 64\)"):
        fit_tiny(model=tiny.model(layout), held_out=torch.zeros(4, 3, 32, 64))


def test_a_head_whose_queries_ignore_k_makes_the_fit_singular_and_a_ridge_keeps_its_mean():
    model, images = tiny.model("timm with [CLS]"), tiny.images(1)
    source = Source.register(model, TestTimeRegister(NEURONS))
    start = mean_key_value(model, [images], source.arm, source.row, (1,))
    with model.intervened(ZeroNeurons(NEURONS)):
        direction = _all_queries_lean_towards(model, images, layer=1)
    away = AttentionBias(-1e4 * direction, start.v, (1,))
    with pytest.raises(DataError, match=r"in layer 1 the queries of heads \[0, 1\] .*ridge > 0"):
        least_squares(model, [images], away, NEURONS, source, "intact", ridge=0.0)
    kept = least_squares(model, [images], away, NEURONS, source, "intact", ridge=1e-3)
    torch.testing.assert_close(kept.v.tensor, start.v.tensor)
