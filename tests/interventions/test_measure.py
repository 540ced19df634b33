"""Means over images are means over images, whatever the batches."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttreg_interp.errors import InterventionError
from ttreg_interp.interventions import (
    ExtraTokens,
    LargestNorms,
    Outliers,
    TestTimeRegister,
    ZeroNeurons,
    calibrate_multiplicity,
    mean_activations,
    mean_attention_bias,
    mean_neurons,
    mean_trained_registers,
    measure,
    resample_neurons,
)

from .kinds import NEURONS
from .laws import cached, few, layouts
from .models import images, model

EARLY = {0: [3, 50]}
"""Neurons of the first of three layers."""
POST = "blocks.1.mlp.hook_post"


@few
@given(layouts, st.integers(2, 6), st.integers(1, 3))
def test_means_do_not_depend_on_the_batches(layout, n, size):
    pixels, hooked = images(n), model(layout)
    whole, parts = (mean_neurons(hooked, NEURONS, pixels.split(k)) for k in (n, size))
    torch.testing.assert_close(whole.means.tensor, parts.means.tensor)
    post = cached(layout, pixels)[POST][:, :, [7, 20, 90]]
    torch.testing.assert_close(whole.means.tensor[2:], post.mean(dim=(0, 1)))


@few
@given(layouts)
def test_a_measured_bias_is_the_mean_key_and_value_of_the_register(layout):
    pixels, register = images(3), TestTimeRegister(NEURONS)
    bias = mean_attention_bias(model(layout), register, pixels.split(2), copies=2.0)
    row = model(layout).layout().n_prefix
    cache = cached(layout, pixels, register)
    for layer in range(3):
        torch.testing.assert_close(bias.k.tensor[layer], cache["k", layer][:, row].mean(0))
        torch.testing.assert_close(bias.v.tensor[layer], cache["v", layer][:, row].mean(0))
    assert bias.copies == 2


def test_means_are_of_the_intervened_run_where_there_is_one():
    hooked = model("timm with [CLS]")
    with hooked.intervened(ZeroNeurons(NEURONS)):
        means = mean_activations(hooked, [images(2)], {POST: lambda post: post.mean(dim=1)})
    assert not means[POST][[7, 20, 90]].any()
    assert means[POST].dtype == torch.float32


def test_there_is_no_mean_of_nothing():
    hooked = model("timm with [CLS]")
    with pytest.raises(InterventionError, match="no images: .*used up"):
        mean_neurons(hooked, NEURONS, [])
    with pytest.raises(InterventionError, match="adds 2 rows"):
        mean_attention_bias(hooked, ExtraTokens(2), [images(1)])
    with pytest.raises(InterventionError, match="no trained registers to average"):
        mean_trained_registers(hooked, [images(1)])


@few
@given(layouts, st.integers(1, 5), st.integers(0, 99))
def test_resampled_activations_are_those_of_tokens_of_the_images(layout, n, seed):
    """All neurons of a sample, of both layers, come from one token."""
    pixels = images(3)
    found = resample_neurons(model(layout), NEURONS, pixels.split(2), n, seed)
    cache = cached(layout, pixels)
    posts = [cache["blocks.0.mlp.hook_post"][..., [3, 50]], cache[POST][..., [7, 20, 90]]]
    tokens = torch.cat(posts, dim=2)
    samples = found.samples.tensor.unflatten(0, (3, n))
    for own, drawn in zip(tokens, samples, strict=True):
        distance = (drawn[:, None] - own[None]).abs().amax(dim=2).amin(dim=1)
        assert (distance < 1e-4).all()
    assert found == resample_neurons(model(layout), NEURONS, pixels.split(2), n, seed)


def share(layout: str, pixels: torch.Tensor, rows: torch.Tensor | slice, *arms) -> float:
    """Attention of [CLS] (else of patches) on rows, mean over the last two blocks."""
    cache = cached(layout, pixels, *arms)
    queries = cache.layout.cls if cache.layout.n_cls else cache.layout.patches
    patterns = torch.stack([cache["pattern", layer] for layer in (1, 2)])
    return float(patterns[..., queries, rows].sum(dim=-1).mean())


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("timm with [CLS]", {"n_registers": 2, "semantics": "reference"}),
        ("timm SigLIP without [CLS]", {}),
        ("timm Eva with rotation", {"multiplicity": 30.0}),
        ("open_clip with ln_pre", {"visible_from_layer": 1}),
    ],
)
def test_a_calibrated_register_draws_what_the_chosen_tokens_drew(layout, options):
    pixels, register = images(3), TestTimeRegister(EARLY, **options)
    chosen = ((0, 0), (1, 2), (3, 3))
    found = calibrate_multiplicity(model(layout), register, pixels.split(2), chosen)
    first = model(layout).layout().n_prefix
    wanted = share(layout, pixels, torch.tensor([first, first + 6, first + 15]))
    rows = slice(first, first + found.n_registers)
    assert share(layout, pixels, rows, found) == pytest.approx(wanted, rel=0.02)
    assert found == replace(register, multiplicity=found.multiplicity)


def test_what_cannot_be_calibrated_is_told(monkeypatch):
    hooked, pixels = model("timm with [CLS]"), [images(2)]
    early, late = TestTimeRegister(EARLY), TestTimeRegister({2: [5]})
    with pytest.raises(
        InterventionError, match="norm > 1000 after block 0 draw 0 of the attention"
    ):
        calibrate_multiplicity(hooked, early, pixels, Outliers(1000.0, layer=0))
    with pytest.raises(InterventionError, match="no attention sees what it holds"):
        calibrate_multiplicity(hooked, late, pixels, LargestNorms(2, layer=0))
    with pytest.raises(InterventionError, match="Is it used up"):
        calibrate_multiplicity(hooked, early, iter(pixels), LargestNorms(2, layer=0))
    monkeypatch.setattr(measure, "MOST_PASSES", 1)
    with pytest.raises(InterventionError, match="in 1 passes.* Are the outliers those that these"):
        calibrate_multiplicity(hooked, early, pixels, LargestNorms(2, layer=0))
