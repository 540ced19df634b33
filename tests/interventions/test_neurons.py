"""Edits of neurons give the values that their formulas say, on the tokens that they say."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttreg_interp.interventions import (
    CopyRegisterValuesTo,
    ExtraTokens,
    MeanNeurons,
    MoveNeurons,
    NoiseNeurons,
    ResampleNeurons,
    ScaleNeurons,
    ShuffleNeurons,
    ZeroNeurons,
)

from .kinds import NEURONS, OTHERS
from .laws import batches, before_and_after, few, layouts, run
from .models import LAYOUTS, images, model

POST = "blocks.1.mlp.hook_post"
OURS = [7, 20, 90]
"""The neurons of block 1, the last three of the set."""


def values(layout, pixels, intervention):
    """Activations of our neurons before and after."""
    before, after = before_and_after(layout, pixels, intervention, POST)
    return before[:, :, OURS], after[:, :, OURS]


@few
@given(layouts, batches)
def test_zero_mean_and_scale(layout, pixels):
    stored = torch.arange(5.0)
    before, zero = values(layout, pixels, ZeroNeurons(NEURONS))
    assert not zero.any()
    before, scaled = values(layout, pixels, ScaleNeurons(NEURONS, -3.0))
    assert torch.equal(scaled, -3 * before)
    _, mean = values(layout, pixels, MeanNeurons(NEURONS, stored))
    assert torch.equal(mean, stored[2:].expand_as(mean))
    before, own = values(layout, pixels, MeanNeurons(NEURONS))
    torch.testing.assert_close(own, before.mean(dim=1, keepdim=True).expand_as(own))


@few
@given(layouts, batches, st.integers(0, 99))
def test_resampled_tokens_are_stored_tokens(layout, pixels, seed):
    samples = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    _, after = values(layout, pixels, ResampleNeurons(NEURONS, samples, seed))
    found = (after[:, :, None, :] == samples[:, 2:]).all(dim=-1)
    assert found.any(dim=-1).all()
    assert (found == found[:1]).all()


@few
@given(layouts, batches, st.integers(0, 99))
def test_shuffled_values_are_the_same_in_other_places(layout, pixels, seed):
    before, after = values(layout, pixels, ShuffleNeurons(NEURONS, seed))
    assert torch.equal(before.sort(dim=1).values, after.sort(dim=1).values)
    assert not torch.equal(before, after)


def test_noise_has_the_statistics_of_the_neuron():
    draws = []
    for seed in range(40):
        noisy = NoiseNeurons({1: OURS}, seed=seed)
        before, after = values("timm with [CLS]", images(1), noisy)
        draws.append(after)
    noise = torch.cat(draws, dim=1)
    tolerance = 0.15 * before.std(dim=1)
    assert ((noise.mean(1) - before.mean(1)).abs() < tolerance).all()
    assert ((noise.std(1) - before.std(1, correction=0)).abs() < tolerance).all()


def test_added_noise_leaves_the_value_in_it():
    layout = "timm with [CLS]"
    before, after = values(layout, images(2), NoiseNeurons(NEURONS, 1e-3, "add"))
    torch.testing.assert_close(after, before, rtol=0, atol=0.02)
    assert not torch.equal(after, before)


@few
@given(layouts, batches)
def test_moved_values_stand_on_the_targets_only(layout, pixels):
    targets = ((0, 1), (3, 3))
    before, after = values(layout, pixels, MoveNeurons(NEURONS, targets, scale=2.0))
    first = model(layout).layout().n_prefix
    rows = [first + 1, first + 15]
    assert torch.equal(after[:, rows], 2 * before.amax(dim=1, keepdim=True).expand(-1, 2, -1))
    assert int(after.any(dim=2).sum()) == 2 * len(pixels)


def test_every_image_can_have_targets_of_its_own():
    layout, pixels = "timm with [CLS]", images(3)
    per_image = (((0, 0),), (), ((1, 2), (3, 3)))
    together = run(layout, pixels, MoveNeurons(NEURONS, per_image))
    for image, targets in enumerate(per_image):
        alone = MoveNeurons(NEURONS, targets) if targets else ZeroNeurons(NEURONS)
        torch.testing.assert_close(
            run(layout, pixels[image, None], alone)[0], together[image], rtol=1e-4, atol=1e-4
        )


@few
@given(layouts, batches)
def test_copied_values_are_those_of_the_register_neurons(layout, pixels):
    targets = list(OTHERS.by_layer()[1])
    before, after = before_and_after(layout, pixels, CopyRegisterValuesTo(NEURONS, OTHERS), POST)
    assert torch.equal(after[:, :, targets], before[:, :, OURS])
    assert torch.equal(after[:, :, OURS], before[:, :, OURS])
    control = CopyRegisterValuesTo(NEURONS, OTHERS, to=(2,))
    before, after = before_and_after(layout, pixels, control, POST)
    assert torch.equal(after[:, 2, targets], before[:, :, OURS].amax(dim=1))
    assert not after[:, 3:, targets].any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("part", ["patches", "test_time_registers"])
def test_edits_stay_on_the_chosen_tokens(layout, part):
    """Also where rows were added before them."""
    edit = ExtraTokens(2) + ScaleNeurons(NEURONS, 5.0, tokens=part)
    before, after = values(layout, images(2), edit)
    rows = getattr(model(layout).layout().with_test_time_registers(2), part)
    expected = before.clone()
    expected[:, rows] *= 5
    assert torch.equal(after, expected)
