"""DINOv2's own class under hook points, and its hub."""

import importlib
import shutil
import sys
from pathlib import Path

import dinov2_stand_in
import pytest
import torch
from hf_families import randomised
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from ttreg_interp.errors import ArtifactError, UnsupportedModelError
from ttreg_interp.hooked import HookedViT, load, verify

HUBCONF = """
dependencies = ["torch"]
from dinov2.models.vision_transformer import DinoVisionTransformer


def dinov2_vits14(pretrained=True):
    return DinoVisionTransformer()


def dinov2_vits14_lc(pretrained=True):
    import torch

    return torch.nn.Sequential(DinoVisionTransformer(), torch.nn.Linear(32, 5))


def dinov2_vitb14(pretrained=True):
    if pretrained:
        raise OSError("Name or service not known")
    return DinoVisionTransformer(depth=2)
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A directory that holds DINOv2's code and hubconf.py."""
    folder = tmp_path_factory.mktemp("clone")
    models = folder / "dinov2" / "models"
    models.mkdir(parents=True)
    shutil.copy(Path(dinov2_stand_in.__file__), models / "vision_transformer.py")
    (folder / "hubconf.py").write_text(HUBCONF)
    return folder


@pytest.fixture(scope="module")
def make(clone):
    """Makes a random DinoVisionTransformer."""
    sys.path.insert(0, str(clone))
    hub = importlib.import_module("dinov2.models.vision_transformer")
    sys.path.remove(str(clone))
    yield lambda **kwargs: randomised(hub.DinoVisionTransformer(**kwargs))
    for name in [name for name in sys.modules if name.split(".")[0] == "dinov2"]:
        del sys.modules[name]


VARIANTS = {
    "plain": {},
    "registers": {"registers": 4},
    "SwiGLU": {"swiglu": True},
    "no LayerScale": {"layer_scale": False},
    "chunked blocks": {"chunks": 2},
    "a chunk for every block": {"chunks": 4},
    "linear head": {"classes": 5},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_keeps_the_contract(variant, make):
    verify(HookedViT.wrap(make(depth=4, **VARIANTS[variant]))).require()


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_fused_attention_gives_the_source_s_bits_at_every_image_size(variant, make):
    module = make(**VARIANTS[variant])
    model = HookedViT.wrap(module)
    for size in [(56, 56), (70, 70), (28, 84), (14, 224)]:
        pixels = torch.randn(2, 3, *size)
        assert torch.equal(model(pixels), module(pixels)), size
        assert torch.equal(model(pixels, return_type="tokens"), module.forward_features(pixels))


@torch.no_grad()
def test_attention_spelled_out_agrees_to_rounding(make):
    module = make(fused=False)
    pixels = torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(HookedViT.wrap(module)(pixels), module(pixels), atol=2e-6, rtol=1e-5)


def test_chunks_are_read_as_one_row_of_blocks(make):
    module = make(chunks=2)
    model = HookedViT.wrap(module)
    assert model.cfg.n_layers == 4
    assert model.blocks[3].mlp.parts.out is module.blocks[1][3].mlp.fc2


def test_registers_are_rows_after_the_class_row(make):
    layout = HookedViT.wrap(make(registers=4)).layout((1, 3, 28, 42))
    assert (layout.n_cls, layout.n_trained_registers, layout.height, layout.width) == (1, 4, 2, 3)


@torch.no_grad()
def test_the_halves_of_a_packed_swiglu_are_gate_and_linear_branch(make):
    model = HookedViT.wrap(make(swiglu=True))
    _, cache = model.run_with_cache(torch.randn(1, 3, 56, 56))
    x, mlp = model.blocks[1].ln2(cache["resid_mid", 1]), model.blocks[1].mlp
    torch.testing.assert_close(x @ mlp.W_gate + mlp.b_gate, cache["pre", 1])
    torch.testing.assert_close(x @ mlp.W_in + mlp.b_in, cache["pre_linear", 1])


def test_a_position_grid_that_is_no_square_is_refused(make):
    with pytest.raises(UnsupportedModelError, match="holds 8 patches.*square img_size"):
        HookedViT.wrap(make(img_size=(28, 56)))


def test_another_kind_of_block_is_refused(make):
    module = make()
    module.blocks[2] = nn.TransformerEncoderLayer(32, 2)
    with pytest.raises(UnsupportedModelError, match="TransformerEncoderLayer: this kind of block"):
        HookedViT.wrap(module)


def test_the_class_of_the_same_name_in_dinov3_is_another(make):
    class DinoVisionTransformer(nn.Module):
        __module__ = "dinov3.models.vision_transformer"

    with pytest.raises(UnsupportedModelError, match="No source file knows dinov3"):
        HookedViT.wrap(DinoVisionTransformer())


# ------------------------------------------------------------------ the reference's own tensors


@pytest.fixture
def reference(golden, make):
    """The reference implementation's tensors, and a model of the same weights."""
    tensors = load_file(golden / "ref_dinov2_small.safetensors")
    module = make(img_size=70, width=128)
    module.load_state_dict({k[2:]: v.float() for k, v in tensors.items() if k.startswith("w.")})
    return tensors, HookedViT.wrap(module)


@pytest.mark.assets
@torch.no_grad()
def test_tokens_and_norms_are_those_of_the_reference(reference):
    expected, model = reference
    output, cache = model.run_with_cache(expected["x"].float())
    close = {"atol": 2e-5, "rtol": 1e-5}
    torch.testing.assert_close(output, expected["plain.out"], **close)
    torch.testing.assert_close(cache["resid_post", 3], expected["plain.x_prenorm"], **close)
    norms = torch.stack([cache["resid_post", layer].norm(dim=-1) for layer in range(4)], dim=1)
    torch.testing.assert_close(norms, expected["plain.layer_norms"], atol=1e-4, rtol=1e-5)


@pytest.mark.assets
@torch.no_grad()
def test_a_zero_token_after_the_prefix_does_what_the_reference_s_does_at_the_end(reference):
    expected, model = reference
    pixels = expected["x"].float()
    layout = model.layout(pixels.shape)

    def insert(tokens, hook):
        return layout.insert_registers(tokens, torch.zeros_like(tokens[:, :1]))

    output, tokens = model.run_with_hooks(
        pixels, return_type="both", fwd_hooks=[("hook_full_embed", insert)]
    )
    close = {"atol": 2e-5, "rtol": 1e-5}
    torch.testing.assert_close(output, expected["noedit_1.out"], **close)
    patches = tokens[:, layout.patches]
    torch.testing.assert_close(patches, expected["noedit_1.intermediate_last_norm"], **close)


# ------------------------------------------------------------------ the hub


@torch.no_grad()
def test_an_entry_of_a_clone_is_loaded(clone):
    model = load(f"dinov2:{clone}/dinov2_vits14")
    pixels = model.preprocess(Image.new("L", (90, 70)))[None]
    assert pixels.shape == (1, 3, 56, 56)
    assert torch.equal(model(pixels), model.source(pixels))
    assert load(f"dinov2:{clone}/dinov2_vits14", image_size=(28, 84)).preprocess(
        Image.new("RGB", (90, 70))
    ).shape == (3, 28, 84)


def test_preprocessing_normalises_as_imagenet_does(clone):
    model = load(f"dinov2:{clone}/dinov2_vits14")
    white = model.preprocess(Image.new("RGB", (64, 64), (255, 255, 255)))
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(white, expected[:, None, None].expand(3, 56, 56))


def test_random_weights_and_local_ones_ask_for_no_pretrained_ones(clone, tmp_path):
    model = load(f"dinov2:{clone}/dinov2_vitb14?random=1")
    torch.save(model.source.state_dict(), tmp_path / "weights.pth")
    again = load(f"dinov2:{clone}/dinov2_vitb14@{tmp_path / 'weights.pth'}")
    assert torch.equal(again.source.pos_embed, model.source.pos_embed)


def test_a_checkpoint_of_another_depth_is_refused(clone, tmp_path):
    model = load(f"dinov2:{clone}/dinov2_vits14?random")
    torch.save(model.source.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ArtifactError, match="not a checkpoint of dinov2 DinoVisionTransformer"):
        load(f"dinov2:{clone}/dinov2_vitb14@{tmp_path / 'weights.pth'}")


def test_weights_out_of_reach_are_told_with_the_ways_round(clone):
    with pytest.raises(ArtifactError, match="out of reach.*'dinov2:CLONE/dinov2_vitb14'.*hf:"):
        load(f"dinov2:{clone}/dinov2_vitb14")


def test_without_a_clone_the_code_comes_from_the_hub(monkeypatch):
    def unreachable(repository, entry, **options):
        assert options["trust_repo"] and not options["pretrained"]
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load", unreachable)
    with pytest.raises(ArtifactError, match=r"facebookresearch/dinov2 .*out of reach \(no network"):
        load("dinov2:dinov2_vitb14_reg?random")


@pytest.mark.parametrize(
    ("entry", "says"),
    [("dinov2_vits14_lc", "returns a Sequential, no backbone"), ("dinov2_vitx14", "Cannot find")],
)
def test_an_entry_that_is_no_backbone_is_refused_with_those_that_are(entry, says, clone):
    with pytest.raises(UnsupportedModelError, match=f"{says}.*dinov2_vitb14_reg"):
        load(f"dinov2:{clone}/{entry}")
