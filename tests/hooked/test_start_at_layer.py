"""A forward that starts at a layer is the rest of the whole one."""

import pytest
import torch

from tests.hooked.families import make
from ttreg_interp.errors import InterventionError, LayoutError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.interventions import TestTimeRegister, ZeroNeurons

NAMES = ["timm plain", "timm MAP head", "open_clip", "eva rotary, registers, packed SwiGLU"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layer", [0, 1, -1, 2])
@torch.no_grad()
def test_it_gives_the_bits_of_the_whole_forward(name, layer):
    model, pixels = HookedViT.wrap(make(name)), torch.randn(3, 3, 32, 32)
    resid = model(pixels, stop_at_layer=layer)
    found = model(resid, return_type="both", start_at_layer=layer)
    for mine, theirs in zip(found, model(pixels, return_type="both"), strict=True):
        assert torch.equal(mine, theirs)


@torch.no_grad()
def test_images_of_another_size_are_named():
    model, pixels = HookedViT.wrap(make("timm any image size")), torch.randn(2, 3, 48, 24)
    resid = model(pixels, stop_at_layer=1)
    assert torch.equal(model(resid, start_at_layer=1, image_size=(48, 24)), model(pixels))


@torch.no_grad()
def test_its_cache_knows_the_registers():
    model, pixels = HookedViT.wrap(make("timm plain")), torch.randn(2, 3, 32, 32)
    with model.intervened(TestTimeRegister({0: [3]})):
        resid = model(pixels, stop_at_layer=1)
        _, cache = model.run_with_cache(resid, start_at_layer=1)
    assert cache.layout.n_test_time_registers == 1
    assert not any(name.startswith(("hook_embed", "blocks.0")) for name in cache.cache_dict)


@torch.no_grad()
def test_interventions_from_there_on_act_and_are_counted():
    model, pixels = HookedViT.wrap(make("timm plain")), torch.randn(2, 3, 32, 32)
    zero = ZeroNeurons({1: [3, 5, 8]})
    resid = model(pixels, stop_at_layer=1)
    with model.intervened(zero):
        expected = model(pixels)
    with model.intervened(zero):
        assert torch.equal(model(resid, start_at_layer=1), expected)
    with pytest.raises(InterventionError, match="No forward pass reached"), model.intervened(zero):
        pass


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"start_at_layer": 3}, "start_at_layer=3: this model has 2 blocks, so -2 to 2"),
        ({"start_at_layer": 1, "stop_at_layer": 0}, "lies behind stop_at_layer=0"),
    ],
)
def test_layers_out_of_order_are_refused(layers, message):
    model = HookedViT.wrap(make("timm plain"))
    with pytest.raises(LayoutError, match=message):
        model(torch.zeros(1, 17, 32), **layers)
