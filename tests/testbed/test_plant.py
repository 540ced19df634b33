"""Planting into a module at hand, and the parts of the circuit on their own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.testbed import PlantedConfig, plant, planted_vit
from ttreg_interp.testbed.circuit import Circuit, Reserved, Wiring, _cosines
from ttreg_interp.testbed.towers import build, read

SMALL = {"width": 64, "depth": 5, "heads": 4, "image_size": 64, "amplify": ((3, 1),)}


def open_clip_model(**vision):
    from open_clip import CLIP
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    layers = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 5, "head_width": 16}
    text = CLIPTextCfg(context_length=8, vocab_size=32, width=32, heads=2, layers=1)
    return CLIP(32, CLIPVisionCfg(**layers | vision), text)


def timm_model(**options):
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 64, "embed_dim": 64, "depth": 5, "num_heads": 4, "num_classes": 7}
    return VisionTransformer(**sizes | options)


def test_the_image_tower_of_a_whole_clip_model_can_be_planted():
    clip = open_clip_model()
    config = PlantedConfig(layout="open_clip", **SMALL)
    vit = plant(clip.visual, config)
    assert vit.module is clip.visual
    assert vit.truth == planted_vit(config).truth
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.equal(clip.encode_image(pixels), vit.module(pixels))
    assert vit.module(pixels).shape == (2, 32)


def test_a_classifier_is_kept():
    module = timm_model()
    head = module.head.weight.clone()
    vit = plant(module, PlantedConfig(**SMALL))
    assert torch.equal(vit.module.head.weight, head)
    assert vit.module(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


@pytest.mark.parametrize(
    ("module", "layout", "message"),
    [
        (open_clip_model, "open_clip", "CLIP is not the standard open_clip .*`.visual`"),
        (timm_model, "open_clip", "VisionTransformer is not the standard open_clip"),
        (lambda: timm_model(embed_dim=32), "timm", r"shape \(32,\) where \(64,\) is expected"),
        (lambda: timm_model(init_values=1.0), "timm", "first 'blocks.0.ls1.gamma' .* none"),
        (lambda: timm_model(reg_tokens=4), "timm", "first 'pos_embed'|first 'reg_token'"),
        (lambda: timm_model(depth=4), "timm", "first 'blocks.4.attn.*missing"),
        (lambda: open_clip_model(no_ln_pre=True).visual, "open_clip", "'ln_pre.bias' .*missing"),
    ],
)
def test_a_module_that_is_no_standard_vit_is_refused_with_the_first_difference(
    module, layout, message
):
    with pytest.raises(UnsupportedModelError, match=message):
        plant(module(), PlantedConfig(layout=layout, **SMALL))


@given(size=st.integers(4, 32), count=st.integers(1, 15))
def test_filters_are_orthonormal_and_blind_to_brightness(size, count):
    filters = _cosines(size, count).flatten(1).double()
    assert torch.allclose(filters @ filters.T, torch.eye(count, dtype=torch.double), atol=1e-5)
    assert filters.sum(1).abs().max() < 1e-4


@given(d_model=st.integers(46, 300), filters=st.integers(1, 16))
def test_reserved_dimensions_are_the_last_and_distinct(d_model, filters):
    reserved = Reserved.of(d_model, filters)
    named = [reserved.up, reserved.down, reserved.ruler, reserved.detail, reserved.lowest]
    every = [*named, reserved.flat, reserved.null, *reserved.filters]
    assert every == list(range(d_model - Reserved.count(filters), d_model))


@pytest.mark.parametrize("layout", ["timm", "open_clip"])
def test_random_weights_neither_read_nor_write_reserved_dimensions(layout):
    config = PlantedConfig(layout=layout, **SMALL)
    tower = read(layout, build(layout, config.shape), config.shape)
    with torch.no_grad():
        Wiring(tower, Circuit()).random_weights(torch.Generator().manual_seed(0))
    first = Reserved.of(64, 16).up
    assert not tower.position[:, first:].any()
    assert not tower.cls[first:].any()
    assert not tower.patch.weight[first:].any()
    for block in tower.blocks:
        assert not block.qkv_weight[:, first:].any()
        assert not block.mlp_in.weight[:, first:].any()
        assert not block.attention_out.weight[first:].any()
        assert not block.mlp_out.weight[first:].any()
        assert block.mlp_out.weight[:first].any()


@pytest.mark.parametrize("layout", ["timm", "open_clip"])
def test_only_planted_neurons_write_along_u_and_they_write_nothing_else(layout):
    vit = planted_vit(layout=layout, **SMALL)
    tower = read(layout, vit.module, vit.config.shape)
    for layer, block in enumerate(tower.blocks):
        written = block.mlp_out.weight.detach()
        along = (vit.direction @ written) / written.norm(dim=0)
        planted = torch.zeros(tower.neurons, dtype=torch.bool)
        planted[list(vit.truth.get(layer, ()))] = True
        assert torch.allclose(along[planted], torch.ones(int(planted.sum())))
        assert along[~planted].abs().max() < 1e-6


@pytest.mark.parametrize("shift", [-5.0, 40.0])
def test_the_circuit_does_not_see_the_mean_that_layernorm_subtracts(shift):
    """A constant added to every dimension of every token is invisible to each of its parts."""
    vit = planted_vit(**SMALL)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain = vit.module(pixels)
        vit.module.pos_embed += shift
        shifted = vit.module(pixels)
    assert torch.allclose(plain, shifted, atol=1e-3)
