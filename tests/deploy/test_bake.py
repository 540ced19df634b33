"""A baked model is the hooked model under its intervention, in the source's own class."""

import copy
import io
import pickle

import pytest
import torch

from tests.hooked import families
from tests.hooked.sources import hf_families
from tests.interventions import kinds
from tests.interventions.models import model as model_of
from ttreg_interp.deploy.bake import bake
from ttreg_interp.errors import InterventionError, UnsupportedModelError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.hooked.sources import parts_of
from ttreg_interp.interventions import (
    AttentionBias,
    Empty,
    ExtraTokens,
    PatchActivation,
    TestTimeRegister,
    ZeroNeurons,
)

CLEAN = TestTimeRegister({0: [3, 5], 1: [7]}, multiplicity=2.0) + ZeroNeurons({1: [8]})
SOURCES = {
    **{name: (lambda name=name: families.make(name)) for name in families.FAMILIES},
    **hf_families.FAMILIES,
}


def _pixels(model: HookedViT, n_images: int = 3) -> torch.Tensor:
    return torch.randn(n_images, model.parts.n_channels, *model.image_size)


def _reference(module: torch.nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The source's own forward, as one tensor."""
    return parts_of(module)[1].reference(pixels)


def _clip() -> HookedViT:
    return HookedViT.wrap(families.make("open_clip"))


@pytest.mark.parametrize("name", SOURCES)
@torch.no_grad()
def test_a_baked_source_of_every_family_gives_the_bits_of_the_hooked_one(name):
    model = HookedViT.wrap(SOURCES[name]())
    pixels = _pixels(model)
    with model.intervened(CLEAN):
        expected = model(pixels)
    plain = model(pixels)
    baked = bake(model, CLEAN)
    assert type(baked) is type(model.source)
    assert baked.state_dict().keys() == model.source.state_dict().keys()
    assert torch.equal(_reference(baked, pixels), expected)
    assert torch.equal(model(pixels), plain), "the hooked model was changed"
    assert not torch.equal(plain, expected)


BAKED_KINDS = [name for name in kinds.EXAMPLES if kinds.fits(name, "timm with [CLS]")]


@pytest.mark.parametrize("name", BAKED_KINDS)
@torch.no_grad()
def test_every_kind_can_be_baked(name):
    model = model_of("timm with [CLS]")
    intervention = kinds.EXAMPLES[name]("timm with [CLS]")
    pixels = _pixels(model)
    with model.intervened(intervention):
        expected = model(pixels)
    baked = bake(model, intervention)
    assert torch.equal(baked(pixels), expected)
    assert torch.equal(copy.deepcopy(baked)(pixels), expected)


@torch.no_grad()
def test_nothing_baked_in_is_the_source():
    model = _clip()
    pixels = _pixels(model)
    assert torch.equal(bake(model, Empty())(pixels), model(pixels))


@torch.no_grad()
def test_one_image_of_a_batch_is_as_if_alone():
    baked = bake(_clip(), CLEAN)
    pixels = torch.randn(4, 3, 32, 32)
    alone = torch.cat([baked(image[None]) for image in pixels])
    torch.testing.assert_close(baked(pixels), alone, rtol=1e-5, atol=1e-6)


class TestReadersOfTheTokens:
    @torch.no_grad()
    def test_do_not_see_dropped_registers(self):
        model = HookedViT.wrap(SOURCES["DINOv2 registers"]())
        pixels = _pixels(model)
        baked = bake(model, CLEAN)
        with model.intervened(CLEAN):
            tokens = model(pixels, return_type="tokens")
        assert torch.equal(baked(pixels).last_hidden_state, tokens)
        assert (baked.num_prefix_tokens, baked.num_register_tokens) == (4, 3)

    @torch.no_grad()
    def test_are_told_of_kept_ones(self):
        model = HookedViT.wrap(families.make("timm registers"))
        pixels = _pixels(model)
        baked = bake(model, CLEAN, drop_registers=False)
        dropped = bake(model, CLEAN).forward_features(pixels)
        kept = baked.forward_features(pixels)
        assert (baked.num_prefix_tokens, baked.num_register_tokens) == (5, 4)
        assert torch.equal(torch.cat((kept[:, :4], kept[:, 5:]), dim=1), dropped)
        # timm's own split into prefix and patches follows num_prefix_tokens
        (patches,) = baked.forward_intermediates(pixels, indices=1, intermediates_only=True)
        assert patches.shape[-2:] == (4, 4)

    @pytest.mark.parametrize("name", ["SigLIP tower", "timm any image size"])
    def test_that_miscount_with_kept_ones_are_refused_them(self, name):
        model = HookedViT.wrap(SOURCES[name]())
        with pytest.raises(InterventionError, match="take drop_registers=True"):
            bake(model, CLEAN, drop_registers=False)
        bake(model, CLEAN)

    @torch.no_grad()
    def test_find_registers_in_what_the_blocks_between_return(self):
        model = HookedViT.wrap(SOURCES["DINOv2"]())
        states = bake(model, CLEAN)(_pixels(model), output_hidden_states=True).hidden_states
        assert [state.shape[1] for state in states] == [10, 11, 10]


class TestABakedModel:
    def test_lets_gradients_through(self):
        model = _clip().double()
        bias = AttentionBias(torch.randn(2, 2, 16).double(), torch.randn(2, 2, 16).double())
        baked = bake(model, TestTimeRegister({0: [3], 1: [7]}) + bias)
        pixels = torch.randn(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(baked, pixels, fast_mode=True)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @torch.no_grad()
    def test_runs_in_half_precision(self, dtype):
        model = _clip()
        pixels = _pixels(model)
        exact = bake(model, CLEAN)(pixels)
        half = bake(model, CLEAN).to(dtype)(pixels.to(dtype))
        assert half.dtype == dtype
        torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=0.1)

    @torch.no_grad()
    def test_runs_under_autocast(self):
        model = _clip()
        pixels = _pixels(model)
        with torch.autocast("cpu", torch.bfloat16):
            with model.intervened(CLEAN):
                expected = model(pixels)
            assert torch.equal(bake(model, CLEAN)(pixels), expected)

    @pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    @torch.no_grad()
    def test_is_copied_with_what_is_baked_in(self, again):
        model = _clip()
        pixels = _pixels(model)
        baked = bake(model, CLEAN)
        expected = baked(pixels)
        twin = again(baked)
        assert torch.equal(twin(pixels), expected)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(baked(pixels), expected), "the copy shares weights"
        assert not twin(pixels).any(), "the copy runs on other weights than its own"

    @torch.no_grad()
    def test_is_saved_whole_and_takes_other_weights(self):
        model = _clip()
        pixels = _pixels(model)
        baked = bake(model, CLEAN)
        file = io.BytesIO()
        torch.save(baked, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
        twin.load_state_dict(model.source.state_dict())
        assert torch.equal(twin(pixels), baked(pixels))

    @torch.no_grad()
    def test_serves_inside_a_larger_model(self):
        clip = SOURCES["CLIP"]()
        model = HookedViT.wrap(clip.vision_model)
        pixels = _pixels(model)
        with model.intervened(CLEAN):
            expected = clip.visual_projection(model(pixels))
        clip.vision_model = bake(model, CLEAN)
        assert torch.equal(clip.get_image_features(pixels).pooler_output, expected)

    def test_is_not_wrapped_again(self):
        with pytest.raises(UnsupportedModelError, match="baked in, which hook points would leave"):
            HookedViT.wrap(bake(_clip(), CLEAN))

    def test_does_not_save_weights_that_would_forget(self, tmp_path):
        baked = bake(HookedViT.wrap(SOURCES["DINOv2"]()), CLEAN)
        with pytest.raises(UnsupportedModelError, match=r"tt\.save_pretrained"):
            baked.save_pretrained(tmp_path)


class TestRefused:
    def test_what_acts_outside_the_blocks(self):
        edit = PatchActivation("hook_pooled", torch.zeros(32))
        with pytest.raises(InterventionError, match="hook_pooled, outside the blocks"):
            bake(_clip(), edit)

    def test_neurons_that_the_model_lacks(self):
        with pytest.raises(InterventionError, match="neuron 5000"):
            bake(_clip(), ZeroNeurons({0: [5000]}))

    def test_hook_points_that_the_model_lacks(self):
        edit = PatchActivation("blocks.0.attn.hook_rot_q", torch.zeros(2, 16))
        with pytest.raises(InterventionError, match="hook_rot_q"):
            bake(_clip(), edit)

    def test_one_target_an_image(self):
        edit = ZeroNeurons({0: [3]}, tokens=torch.ones(5, 4, 4, dtype=torch.bool))
        with pytest.raises(InterventionError):
            bake(_clip(), edit)

    def test_a_mask_from_the_caller(self):
        baked = bake(HookedViT.wrap(families.make("timm plain")), ExtraTokens())
        tokens = torch.zeros(1, 17, 32)
        with pytest.raises(InterventionError, match="no place for registers"):
            baked.blocks[0](tokens, attn_mask=torch.zeros(1, 1, 17, 17))
