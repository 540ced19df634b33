"""transformers' vision transformers under hook points."""

import pytest
import torch
import transformers as hf
from hf_families import FAMILIES, GRID, PATCH, WIDTH, llava, make, noise

from ttreg_interp.errors import LayoutError, UnsupportedModelError
from ttreg_interp.hooked import HookedViT, verify

SIZES = [(48, 48), (80, 80), (32, 64), (16, 144), (144, 16)]
"""Native; square and not; and two whose patches are as many as the native grid's."""


# ------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize("family", FAMILIES)
def test_every_class_keeps_the_contract(family):
    verify(HookedViT.wrap(FAMILIES[family]())).require()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_output_is_the_source_s_bit_for_bit_at_every_image_size(family):
    model = HookedViT.wrap(FAMILIES[family]())
    for size in SIZES:
        pixels = torch.randn(2, 3, *size)
        assert torch.equal(model(pixels), model.parts.reference(pixels)), size


@pytest.mark.parametrize(
    ("family", "call"),
    {
        "ViT classifier": lambda m, x: m(x).logits,
        "DeiT with teacher": lambda m, x: m(x).logits,
        "ViT": lambda m, x: m(x).pooler_output,
        "ViT without pooler": lambda m, x: m(x).last_hidden_state[:, 0],
        "CLIP": lambda m, x: m.get_image_features(x).pooler_output,
        "CLIP tower": lambda m, x: m(x).pooler_output,
        "CLIP tower, projected": lambda m, x: m(x).image_embeds,
        "SigLIP": lambda m, x: m.get_image_features(x).pooler_output,
        "SigLIP tower without head": lambda m, x: m(x).last_hidden_state.mean(dim=1),
        "DINOv2": lambda m, x: m(x).pooler_output,
        "DINOv2 classifier": lambda m, x: m(x).logits,
        "DINOv3": lambda m, x: m(x).pooler_output,
        "InternVL": lambda m, x: m(x).last_hidden_state[:, 1:].mean(dim=1),
        "InternVL [CLS]": lambda m, x: m(x).last_hidden_state[:, 0],
    }.items(),
)
@torch.no_grad()
def test_the_output_is_what_the_class_returns(family, call):
    module, pixels = FAMILIES[family](), torch.randn(2, 3, 48, 48)
    assert torch.equal(HookedViT.wrap(module)(pixels), call(module, pixels))


@pytest.mark.parametrize(
    "family",
    [
        "ViT",
        "DeiT",
        "CLIP tower",
        "SigLIP tower",
        "DINOv2",
        "DINOv2 registers",
        "DINOv3",
        "InternVL",
    ],
)
@torch.no_grad()
def test_the_tokens_are_the_last_hidden_state(family):
    module, pixels = FAMILIES[family](), torch.randn(2, 3, 48, 48)
    tokens = HookedViT.wrap(module)(pixels, return_type="tokens")
    assert torch.equal(tokens, module(pixels).last_hidden_state)


@torch.no_grad()
def test_siglip2_reads_whole_images_as_its_own_processor_cuts_them():
    module = FAMILIES["SigLIP 2 tower"]()
    processor = hf.Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=GRID**2)
    image = noise(48, 48)
    cut = processor(images=image, return_tensors="pt")
    pixels = hf.ViTImageProcessor(size={"height": 48, "width": 48})(image, return_tensors="pt")[
        "pixel_values"
    ]
    assert torch.equal(HookedViT.wrap(module)(pixels), module(**cut).pooler_output)


@pytest.mark.parametrize(
    "family", ["ViT", "CLIP", "SigLIP 2", "DINOv2 registers", "DINOv3 gated", "InternVL"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_other_dtypes_are_exact_too(family, dtype):
    model = HookedViT.wrap(FAMILIES[family]().to(dtype))
    pixels = torch.randn(2, 3, 48, 48, dtype=dtype)
    assert torch.equal(model(pixels), model.parts.reference(pixels))


@pytest.mark.parametrize("family", ["ViT", "CLIP", "SigLIP", "DINOv2", "DINOv3"])
@torch.no_grad()
def test_float32_images_suit_a_half_precision_model_as_in_the_source(family):
    model = HookedViT.wrap(FAMILIES[family]().bfloat16())
    pixels = torch.randn(2, 3, 48, 48)
    assert torch.equal(model(pixels), model.parts.reference(pixels))


@torch.no_grad()
def test_rotation_counts_patches_from_the_end_when_keys_are_added_in_front():
    model, pixels = HookedViT.wrap(FAMILIES["DINOv3"]()), torch.randn(2, 3, 48, 48)

    def lengthen(heads, hook):
        return torch.cat((torch.ones_like(heads[:, :1]), heads), dim=1)

    def hide(mask, hook):
        return mask.index_fill(-1, torch.tensor([0]), float("-inf"))

    hooks = [
        (lambda name: name.endswith(("hook_k", "hook_v")), lengthen),
        (lambda name: name.endswith("hook_mask"), hide),
    ]
    torch.testing.assert_close(model.run_with_hooks(pixels, fwd_hooks=hooks), model(pixels))


# ------------------------------------------------------------------ layouts and weights


@pytest.mark.parametrize(
    ("family", "n_cls", "n_registers"),
    [
        ("ViT", 1, 0),
        ("DeiT", 2, 0),
        ("CLIP", 1, 0),
        ("SigLIP", 0, 0),
        ("SigLIP 2", 0, 0),
        ("DINOv2", 1, 0),
        ("DINOv2 registers", 1, 3),
        ("DINOv3", 1, 4),
        ("DINOv3 without registers", 1, 0),
        ("InternVL", 1, 0),
    ],
)
def test_the_layout_counts_class_rows_and_trained_registers(family, n_cls, n_registers):
    layout = HookedViT.wrap(FAMILIES[family]()).layout((1, 3, 32, 64))
    assert (layout.n_cls, layout.n_trained_registers) == (n_cls, n_registers)
    assert (layout.height, layout.width) == (2, 4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_weights_by_role_compute_what_the_hook_points_hold(family):
    model, pixels = HookedViT.wrap(FAMILIES[family]()), torch.randn(2, 3, 48, 48)
    _, cache = model.run_with_cache(pixels)
    for layer, block in enumerate(model.blocks):
        attn, mlp = block.attn, block.mlp
        x = block.ln1(cache["resid_pre", layer])
        for role, weight, bias in (
            ("q", attn.W_Q, attn.b_Q),
            ("k", attn.W_K, attn.b_K),
            ("v", attn.W_V, attn.b_V),
        ):
            assert weight.shape == (2, WIDTH, WIDTH // 2)
            heads = torch.einsum("btm,hmd->bthd", x, weight) + bias
            if "qk-norm" not in family or role == "v":
                torch.testing.assert_close(heads, cache[role, layer], atol=1e-5, rtol=1e-4)
        attn_out = torch.einsum("bthd,hdm->btm", cache["z", layer], attn.W_O) + attn.b_O
        torch.testing.assert_close(attn_out, cache["attn_out", layer], atol=1e-5, rtol=1e-4)

        y = block.ln2(cache["resid_mid", layer])
        n_neurons = cache["post", layer].shape[-1]
        assert mlp.W_in.shape == (WIDTH, n_neurons) and mlp.W_out.shape == (n_neurons, WIDTH)
        pre = y @ mlp.W_in + mlp.b_in
        if mlp.W_gate is None:
            torch.testing.assert_close(pre, cache["pre", layer], atol=1e-5, rtol=1e-4)
        else:
            torch.testing.assert_close(pre, cache["pre_linear", layer], atol=1e-5, rtol=1e-4)
            gate = y @ mlp.W_gate + mlp.b_gate
            torch.testing.assert_close(gate, cache["pre", layer], atol=1e-5, rtol=1e-4)
        mlp_out = cache["post", layer] @ mlp.W_out + mlp.b_out
        torch.testing.assert_close(mlp_out, cache["mlp_out", layer], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["DeiT with teacher", "ViT", "SigLIP"])
def test_a_readout_that_is_not_linear_has_no_unembedding(family):
    assert HookedViT.wrap(FAMILIES[family]()).parts.unembed is None


@torch.no_grad()
def test_a_linear_readout_unembeds_the_pooled_vector():
    for family in ("ViT classifier", "CLIP", "DINOv2 registers classifier"):
        model, pixels = HookedViT.wrap(FAMILIES[family]()), torch.randn(2, 3, 48, 48)
        output, cache = model.run_with_cache(pixels)
        weight, bias = model.parts.unembed()
        expected = cache["hook_pooled"] @ weight.T + (0 if bias is None else bias)
        torch.testing.assert_close(output, expected)


# ------------------------------------------------------------------ towers and refusals


@pytest.mark.parametrize(
    ("model_class", "family", "tower"),
    [
        (hf.LlavaForConditionalGeneration, "CLIP tower", "CLIPVisionModel"),
        (hf.LlavaForConditionalGeneration, "SigLIP tower without head", "SiglipVisionModel"),
        (hf.LlavaNextForConditionalGeneration, "CLIP tower", "CLIPVisionModel"),
        (hf.InternVLForConditionalGeneration, "InternVL", "InternVLVisionModel"),
    ],
)
@torch.no_grad()
def test_the_tower_of_a_llava_style_model_is_found(model_class, family, tower):
    whole = llava(model_class, FAMILIES[family]())
    model, pixels = HookedViT.wrap(whole), torch.randn(1, 3, 48, 48)
    assert type(model.source).__name__ == tower
    assert torch.equal(model(pixels), model.parts.reference(pixels))


def test_siglip_s_tower_is_its_vision_model_and_clip_stays_whole():
    siglip, clip = FAMILIES["SigLIP"](), FAMILIES["CLIP"]()
    assert HookedViT.wrap(siglip).source is siglip.vision_model
    assert HookedViT.wrap(clip).source is clip


def test_a_tower_whose_output_is_projected_elsewhere_is_not_taken_for_the_model():
    dual = hf.VisionTextDualEncoderModel(
        vision_model=FAMILIES["ViT"](),
        text_model=hf.CLIPTextModel(FAMILIES["CLIP"]().config.text_config),
    )
    with pytest.raises(
        UnsupportedModelError, match="No source file knows transformers.*VisionTextDualEncoder"
    ):
        HookedViT.wrap(dual)


@torch.no_grad()
def test_a_vit_of_a_wide_native_grid_runs_at_its_own_size_only():
    model = HookedViT.wrap(make(hf.ViTModel, image_size=(32, 64)))
    pixels = torch.randn(2, 3, 32, 64)
    assert torch.equal(model(pixels), model.source(pixels).pooler_output)
    with pytest.raises(LayoutError, match=r"takes \(32, 64\) only"):
        model(torch.randn(2, 3, 64, 32))


@pytest.mark.parametrize(
    "model_class", [hf.Dinov2Model, hf.Dinov2WithRegistersModel, hf.InternVLVisionModel]
)
def test_a_position_grid_that_transformers_gets_wrong_is_refused(model_class):
    # 1 x 4 patches: their number is a square, and the source would read them as 2 x 2.
    with pytest.raises(
        UnsupportedModelError, match="holds 1 x 4 patches.*square grid.*square image_size"
    ):
        HookedViT.wrap(make(model_class, image_size=(16, 64)))


def test_a_siglip2_grid_that_is_no_square_is_refused():
    with pytest.raises(UnsupportedModelError, match="holds 8 patches"):
        HookedViT.wrap(make(hf.Siglip2VisionModel, num_patches=8))
