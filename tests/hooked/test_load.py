"""Models by name: specs, local checkpoints, random weights, and what is said when it goes wrong."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.hooked.families import make
from ttreg_interp.errors import ArtifactError, ContractError, UnsupportedModelError
from ttreg_interp.hooked import HookedViT, ModelSpec, load, verify, weights_hash

names = st.text("abcXYZ0123456789_-./", min_size=1, max_size=12)


@given(
    st.sampled_from(["open_clip", "hf", "timm", "dinov2"]),
    names,
    st.none() | names,
    st.none() | st.integers(0, 99),
)
def test_a_spec_is_read_as_it_is_written(source, name, checkpoint, seed):
    spec = ModelSpec(source, name, checkpoint, seed)
    assert ModelSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    "text", ["vit", "timm:", "nowhere:vit", "timm:vit?frozen", "timm:vit?random=x", ""]
)
def test_what_is_no_spec_is_told_the_form(text):
    with pytest.raises(UnsupportedModelError, match="is no model spec. The form is SOURCE:NAME"):
        load(text)


@pytest.mark.parametrize("spec", ["timm:test_vit?random", "timm:test_vit2?random"])
def test_random_weights_are_the_seeds(spec):
    first, again, other = load(spec), load(spec), load(f"{spec}=1")
    assert weights_hash(first.source) == weights_hash(again.source) != weights_hash(other.source)
    assert not first.source.training


def test_random_weights_leave_the_random_state_alone():
    before = torch.get_rng_state()
    load("timm:test_vit?random=5")
    assert torch.equal(torch.get_rng_state(), before)


def test_another_image_size_interpolates_the_positions():
    model = load("timm:test_vit?random", image_size=(96, 224))
    assert (model.layout().height, model.layout().width) == (6, 14)
    pixels = torch.randn(1, 3, 96, 224)
    assert torch.equal(model(pixels), model.source(pixels))


def test_an_open_clip_model_brings_its_text_tower():
    model = load("open_clip:ViT-S-32-alt?random")
    assert model.text.encode_text(["a photo of a cat", "a dog"]).shape == (2, model.cfg.d_vocab)
    from PIL import Image

    assert model.preprocess(Image.new("RGB", (300, 200))).shape == (3, 224, 224)


def test_the_activation_that_the_architecture_names_is_used():
    from open_clip.transformer import QuickGELU

    assert isinstance(
        load("open_clip:ViT-B-32-quickgelu?random").blocks[0].mlp.parts.act, QuickGELU
    )
    assert isinstance(load("open_clip:ViT-S-32-alt?random").blocks[0].mlp.parts.act, torch.nn.GELU)


@pytest.fixture
def checkpoint(tmp_path):
    import timm

    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def test_a_local_checkpoint_is_loaded(checkpoint):
    import timm
    from safetensors.torch import load_file

    model = load(f"timm:test_vit@{checkpoint}")
    own = timm.create_model("test_vit")
    own.load_state_dict(load_file(checkpoint))
    assert weights_hash(model.source) == weights_hash(own)


def test_a_checkpoint_of_another_architecture_is_refused(checkpoint):
    with pytest.raises(
        ArtifactError, match=r"not a checkpoint of timm VisionTransformer: \d+ keys missing"
    ):
        load(f"timm:vit_tiny_patch16_224@{checkpoint}")
    with pytest.raises(ArtifactError, match="not a checkpoint of open_clip ViT-S-32-alt"):
        load(f"open_clip:ViT-S-32-alt@{checkpoint}")
    with pytest.raises(
        ArtifactError, match="No checkpoint at gone.safetensors. Check the path after '@'"
    ):
        load("timm:test_vit@gone.safetensors")


def test_broken_weights_are_named(checkpoint, tmp_path):
    from safetensors.torch import load_file

    state = load_file(checkpoint)
    state["blocks.2.mlp.fc1.bias"][3] = float("nan")
    save_file(state, tmp_path / "broken.safetensors")
    with pytest.raises(ContractError, match="blocks.2.mlp.fc1.bias holds 1 NaN or inf"):
        load(f"timm:test_vit@{tmp_path / 'broken.safetensors'}")


def test_unknown_names_get_near_ones():
    with pytest.raises(
        UnsupportedModelError, match=r"has no model 'vit_tiny_patch61'. Near it: \['vit_tiny"
    ):
        load("timm:vit_tiny_patch61?random")
    with pytest.raises(
        UnsupportedModelError, match=r"no architecture 'ViT-B-61'. Near it: \['ViT-B"
    ):
        load("open_clip:ViT-B-61?random")
    with pytest.raises(
        UnsupportedModelError, match="no pretrained weights 'laion3b' for ViT-B-16; it has"
    ):
        load("open_clip:ViT-B-16/laion3b")


def test_unsupported_models_get_the_families_and_the_way_to_add_one():
    from torchvision.models import resnet18, vit_b_16

    for module in (resnet18(), vit_b_16()):
        with pytest.raises(
            UnsupportedModelError, match="No source file knows torchvision"
        ) as refused:
            HookedViT.wrap(module)
        for said in ("Supported:\n  open_clip: ", "The nearest is", "docs/how-to/add-a-model.md"):
            assert said in str(refused.value)
    with pytest.raises(UnsupportedModelError, match="is not a plain vision transformer"):
        load("open_clip:RN50?random")


def test_variants_that_would_be_computed_wrongly_are_refused():
    from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer

    for block in (ResPostBlock, ParallelScalingBlock):
        module = VisionTransformer(
            img_size=32,
            patch_size=8,
            embed_dim=32,
            depth=1,
            num_heads=2,
            block_fn=block,
            init_values=0.1,
        )
        with pytest.raises(UnsupportedModelError, match="covers pre-norm blocks"):
            HookedViT.wrap(module)


def test_the_embedded_models_are_there():
    assert verify(load("testbed:planted", image_size=64)).passed
    with pytest.raises(UnsupportedModelError, match="none of the embedded models"):
        load("testbed:grown")


def test_the_hash_tells_weights_apart():
    module = make("timm plain")
    before = weights_hash(module)
    with torch.no_grad():
        module.blocks[0].mlp.fc1.bias[0] += 1e-6
    assert weights_hash(module) != before


def test_the_real_vit_tiny_sees_what_its_source_sees(assets):
    model = load(
        f"timm:vit_tiny_patch16_224@{assets / 'vit_tiny_augreg_in1k' / 'model.safetensors'}"
    )
    pixels = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model(pixels), model.source(pixels))


def test_another_size_stays_through_a_copy():
    import copy

    model = load("hf:facebook/dinov2-small?random", image_size=(70, 112))
    assert model.image_size == copy.deepcopy(model).image_size == (70, 112)
    assert (model.layout().height, model.layout().width) == (5, 8)
