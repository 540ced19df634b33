"""Means over images are means over images, whatever the batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttreg_interp.errors import InterventionError
from ttreg_interp.interventions import (
    ExtraTokens,
    TestTimeRegister,
    ZeroNeurons,
    mean_activations,
    mean_attention_bias,
    mean_neurons,
    mean_trained_registers,
)

from .kinds import NEURONS
from .laws import cached, few, layouts
from .models import images, model


@few
@given(layouts, st.integers(2, 6), st.integers(1, 3))
def test_means_do_not_depend_on_the_batches(layout, n, size):
    pixels, hooked = images(n), model(layout)
    whole, parts = (mean_neurons(hooked, NEURONS, pixels.split(k)) for k in (n, size))
    torch.testing.assert_close(whole.means.tensor, parts.means.tensor)
    post = cached(layout, pixels)["blocks.1.mlp.hook_post"][:, :, [7, 20, 90]]
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
    point = "blocks.1.mlp.hook_post"
    with hooked.intervened(ZeroNeurons(NEURONS)):
        means = mean_activations(hooked, [images(2)], {point: lambda post: post.mean(dim=1)})
    assert not means[point][[7, 20, 90]].any()
    assert means[point].dtype == torch.float32


def test_there_is_no_mean_of_nothing():
    hooked = model("timm with [CLS]")
    with pytest.raises(InterventionError, match="mean over no images.*used up"):
        mean_neurons(hooked, NEURONS, [])
    with pytest.raises(InterventionError, match="adds 2 rows"):
        mean_attention_bias(hooked, ExtraTokens(2), [images(1)])
    with pytest.raises(InterventionError, match="no trained registers to average"):
        mean_trained_registers(hooked, [images(1)])
