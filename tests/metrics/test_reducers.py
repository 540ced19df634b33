"""Reducers: what streams through equals the statistic of everything held at once."""

import math

import numpy as np
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


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40),
    st.floats(0, 1),
    st.integers(0, 40),
)
def test_quantiles_are_numpy_s_to_half_a_bin_or_refused(values, share, cut):
    parts = [torch.tensor(part)[None, :, None] for part in (values[:cut], values[cut:]) if part]
    one, other = Histogram(-10.0, 10.0, bins=400), Histogram(-10.0, 10.0, bins=400)
    one.add(parts[0])
    other.add(parts[-1])
    if len(parts) > 1:
        one.merge(other)
    assert (one.n, one.below) == (len(values), sum(value < -10 for value in values))
    exact = np.quantile(np.array(values), share, method="inverted_cdf")
    if -10 <= exact < 10:
        assert abs(one.quantile(share) - exact) <= 0.025 + 1e-9
    else:
        with pytest.raises(DataError, match="outside the bins"):
            one.quantile(share)


@pytest.mark.parametrize("n_parts", [1, 2, 5])
def test_mean_and_variance_are_numpy_s_however_they_are_merged(n_parts):
    whole = everything(shift=1e4)
    total = Mean()
    total.merge(Mean())  # of nothing
    for part in whole.split(math.ceil(len(whole) / n_parts)):
        piece = Mean()
        piece.add(part)
        total.merge(piece)
    flat = whole.flatten(0, 1).double().numpy()
    np.testing.assert_allclose(total.mean.numpy(), flat.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(total.variance.numpy(), flat.var(axis=0, ddof=1), rtol=1e-10)


def test_a_quantile_of_nothing_is_refused():
    with pytest.raises(DataError, match="A quantile of 0 entries at 0.5"):
        Histogram(0.0, 1.0).quantile(0.5)


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
