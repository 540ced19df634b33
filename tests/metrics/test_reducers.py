"""Reducers: what streams through equals the statistic of everything held at once."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttreg_interp.errors import ContractError, DataError
from ttreg_interp.hooked import load
from ttreg_interp.metrics.reducers import Histogram, Mean, TopK, reduce_activations

POST = "blocks.1.mlp.hook_post"


@pytest.fixture(scope="module")
def model():
    return load("timm:test_vit?random")


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(7, 3, 160, 160, generator=torch.Generator().manual_seed(0))


def everything(shift: float) -> torch.Tensor:
    return torch.randn(12, 3, 4, generator=torch.Generator().manual_seed(1)) + shift


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 11), st.sampled_from([0.0, 1e4]))
def test_any_split_gives_the_statistics_of_the_whole(at, shift):
    whole = everything(shift)
    flat = whole.flatten(0, 1).double()
    mean, top, histogram = Mean(), TopK(3), Histogram(shift - 4, shift + 4)
    others = Mean(), TopK(3), Histogram(shift - 4, shift + 4)
    for mine, other in zip((mean, top, histogram), others, strict=True):
        mine.add(whole[:at], 0)
        other.add(whole[at:], at)
        mine.merge(other)
    torch.testing.assert_close(mean.mean, flat.mean(dim=0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mean.variance, flat.var(dim=0), rtol=1e-9, atol=1e-9)
    assert torch.equal(top.values.double(), flat.topk(3, dim=0).values)
    assert torch.equal(whole[top.images, top.tokens, torch.arange(4)], top.values)
    assert histogram.counts.sum() == whole.numel()
    exact = flat.flatten().sort().values[math.ceil(0.9 * flat.numel()) - 1]
    assert abs(histogram.quantile(0.9) - exact) < 8 / 1000


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_the_model_feeds_what_a_cache_would_hold(model, pixels, batch_size):
    _, cache = model.run_with_cache(pixels, names_filter=POST)
    patches = cache[POST][:, model.layout().patches]
    mean, top = Mean(), TopK(2)
    found = {POST: mean}
    assert reduce_activations(model, pixels.split(batch_size), found, model.layout().patches) == 7
    reduce_activations(model, pixels.split(batch_size), {POST: top}, model.layout().patches)
    torch.testing.assert_close(mean.mean.float(), patches.mean(dim=(0, 1)), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(top.values[0], patches.amax(dim=(0, 1)), rtol=1e-4, atol=1e-6)


def test_layers_behind_the_last_one_asked_for_do_not_run(model, pixels):
    ran = []
    watch = [
        (f"blocks.{layer}.hook_resid_post", lambda x, hook: ran.append(hook.name))
        for layer in range(6)
    ]
    with model.hooks(fwd_hooks=watch):
        reduce_activations(model, [pixels], {POST: Mean()})
        assert ran == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
        ran.clear()
        reduce_activations(model, [pixels], {"hook_full_embed": Mean()})
        assert not ran
        reduce_activations(model, [pixels], {"ln_final.hook_normalized": Mean()})
        assert len(ran) == 6


def test_bad_input_is_told(model, pixels):
    with pytest.raises(DataError, match="no hook point 'blocks.9.mlp.hook_post'"):
        reduce_activations(model, [pixels], {"blocks.9.mlp.hook_post": Mean()})
    with pytest.raises(DataError, match="no images"):
        reduce_activations(model, [], {POST: Mean()})
    with pytest.raises(ContractError, match=f"NaN or inf at {POST}"):
        reduce_activations(model, [pixels * float("nan")], {POST: Mean()})
    with pytest.raises(DataError, match="low < high"):
        Histogram(1.0, 1.0)
    with pytest.raises(DataError, match="equal bins"):
        Histogram(0.0, 1.0).merge(Histogram(0.0, 2.0))
