"""Attribution by token adds up to what attention writes, with registers and biases in their places."""

import pytest
import torch

from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.evaluations.attribution import attribution_map, token_attribution
from ttreg_interp.interventions import AttentionBias, Empty, TestTimeRegister

from .small import classifier
from .test_text import clip


@pytest.mark.parametrize("arm", [Empty(), TestTimeRegister({0: range(0, 60)})])
@pytest.mark.parametrize("make", [clip, classifier])
@torch.no_grad()
def test_all_tokens_and_layers_sum_to_what_attention_adds(make, arm):
    model, pixels = make(), torch.randn(2, 3, 32, 32)
    with model.intervened(arm):
        output, cache = model.run_with_cache(pixels)
    direction = torch.randn(output.shape[1])
    found = token_attribution(model, arm, pixels, direction)
    weight = model.parts.unembed()[0]
    gain = weight.T @ direction * model.ln_final.w
    scale = cache["ln_final.hook_scale"].flatten(1)[:, :1]
    expected = torch.zeros(2)
    for layer in range(2):
        written = cache["attn_out", layer][:, 0] - model.blocks[layer].attn.b_O
        centred = written - written.mean(dim=-1, keepdim=True)
        expected += (centred @ gain) / scale[:, 0]
    assert found.shape == (2, 17 + arm.n_added_tokens)
    assert torch.allclose(found.sum(dim=1), expected, atol=1e-4)


@torch.no_grad()
def test_layers_add_up_and_a_map_has_the_patches_alone():
    model, pixels = clip(), torch.randn(2, 3, 32, 32)
    arm = TestTimeRegister({0: [3]})
    direction = torch.randn(16)
    whole = token_attribution(model, arm, pixels, direction)
    parts = [token_attribution(model, arm, pixels, direction, [layer]) for layer in (0, 1)]
    assert torch.allclose(whole, sum(parts), atol=1e-5)
    grid = attribution_map(model, arm, pixels, direction)
    assert torch.equal(grid.flatten(1), whole[:, 2:])


@torch.no_grad()
def test_an_attention_bias_is_no_token():
    model, pixels = clip(), torch.randn(1, 3, 32, 32)
    cfg = model.cfg
    bias = AttentionBias(*torch.randn(2, cfg.n_layers, cfg.n_heads, cfg.d_head))
    assert token_attribution(model, bias, pixels, torch.randn(16)).shape == (1, 17)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_token": False, "global_pool": "avg"}, "off \\[CLS\\] alone"),
        ({"global_pool": "avg", "fc_norm": False}, "off \\[CLS\\] alone"),
        ({"scale_attn_norm": True}, "behind the heads"),
    ],
)
def test_models_that_do_not_add_up_are_refused(options, words):
    with pytest.raises(UnsupportedModelError, match=words):
        token_attribution(classifier(**options), Empty(), torch.randn(1, 3, 32, 32), torch.randn(3))
