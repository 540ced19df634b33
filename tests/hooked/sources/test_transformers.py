"""transformers' vision transformers under hook points, and their loading by name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from hf_families import FAMILIES, GRID, PATCH, WIDTH, make, randomised
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from ttreg_interp.errors import ArtifactError, LayoutError, UnsupportedModelError
from ttreg_interp.hooked import HookedViT, load, verify

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
    image = _image(48, 48)
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


def _language() -> hf.PreTrainedConfig:
    return hf.Qwen2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        vocab_size=32,
        bos_token_id=0,
        eos_token_id=1,
    )


def _llava(model_class, vision: nn.Module) -> nn.Module:
    config = model_class.config_class(
        vision_config=vision.config, text_config=_language(), image_token_id=3, image_token_index=3
    )
    return model_class(config).eval()


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
    whole = _llava(model_class, FAMILIES[family]())
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


# ------------------------------------------------------------------ loading


def _image(height: int, width: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


@pytest.fixture
def saved(tmp_path):
    """Saves a model in a directory, as a hub has it: names of weights included."""

    def save(family: str, processor=None) -> tuple[nn.Module, Path]:
        module, folder = FAMILIES[family](), tmp_path / "model"
        module.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
        return module, folder

    return save


@pytest.mark.parametrize(
    "family", ["ViT", "CLIP", "SigLIP", "DINOv2 SwiGLU", "DINOv3 gated", "InternVL [CLS]"]
)
@torch.no_grad()
def test_a_local_directory_gives_the_model_that_was_saved(family, saved):
    module, folder = saved(family)
    pixels = torch.randn(2, 3, 48, 48)
    expected = HookedViT.wrap(module)(pixels)
    assert torch.equal(load(f"hf:{folder}")(pixels), expected)
    assert torch.equal(load(f"hf:{folder}@{folder / 'model.safetensors'}")(pixels), expected)


@torch.no_grad()
def test_a_state_dict_saved_by_torch_is_a_checkpoint(saved, tmp_path):
    module, folder = saved("ViT classifier")
    file, other = tmp_path / "weights.bin", randomised(FAMILIES["ViT classifier"](), seed=1)
    torch.save(other.state_dict(), file)
    pixels = torch.randn(2, 3, 48, 48)
    assert torch.equal(load(f"hf:{folder}@{file}")(pixels), other(pixels).logits)


def test_a_checkpoint_of_another_architecture_is_refused(saved, tmp_path):
    _, folder = saved("DINOv2")
    for state in (
        make(hf.Dinov2Model, num_hidden_layers=3),
        FAMILIES["ViT"](),
        make(hf.Dinov2Model, patch_size=8),
    ):
        file = tmp_path / "other.safetensors"
        save_file(state.state_dict(), file)
        with pytest.raises(ArtifactError, match="not a checkpoint of transformers Dinov2Model"):
            load(f"hf:{folder}@{file}")


@pytest.mark.parametrize(
    ("content", "says"), [(b"junk", "cannot be read"), (None, "no state dict")]
)
def test_a_file_that_holds_no_weights_is_refused(content, says, saved, tmp_path):
    _, folder = saved("DINOv2")
    file = tmp_path / "weights.pt"
    file.write_bytes(content) if content else torch.save([1, 2], file)
    with pytest.raises(ArtifactError, match=says):
        load(f"hf:{folder}@{file}")


@torch.no_grad()
def test_a_checkpoint_without_a_pooler_is_loaded_without_one(saved):
    module, folder = saved("ViT without pooler")
    model, pixels = load(f"hf:{folder}"), torch.randn(2, 3, 48, 48)
    assert model.source.pooler is None
    assert torch.equal(model(pixels), module(pixels).last_hidden_state[:, 0])


def test_weights_that_are_missing_are_never_random(saved):
    module, folder = saved("DINOv2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(ArtifactError, match="36 keys missing"):
        load(f"hf:{folder}")


def test_random_weights_follow_the_seed(saved):
    _, folder = saved("CLIP")
    first, again, other = (load(f"hf:{folder}?random={seed}") for seed in (3, 3, 4))
    weights = [model.source.visual_projection.weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_half_precision_checkpoint_is_loaded_in_float32(tmp_path):
    FAMILIES["CLIP"]().half().save_pretrained(tmp_path)
    model = load(f"hf:{tmp_path}")
    assert {p.dtype for p in (*model.source.parameters(), *model.text.module.parameters())} == {
        torch.float32
    }


def test_only_the_tower_of_a_llava_style_model_is_kept(tmp_path):
    whole = _llava(hf.LlavaForConditionalGeneration, FAMILIES["CLIP tower"]())
    whole.save_pretrained(tmp_path)
    model = load(f"hf:{tmp_path}")
    assert type(model.source) is hf.CLIPVisionModel and model.text is None
    torch.testing.assert_close(
        model.source.state_dict(), whole.model.vision_tower.state_dict(), rtol=0, atol=0
    )


KNOWN = {
    "facebook/dinov2-small": 22.06,
    "facebook/dinov2-base": 86.58,
    "facebook/dinov2-large": 304.37,
    "facebook/dinov2-giant": 1136.48,
    "facebook/dinov2-with-registers-base": 86.58,
    "facebook/dinov3-vitb16-pretrain-lvd1689m": 85.66,
    "facebook/dinov3-vitl16-pretrain-lvd1689m": 303.13,
    "google/vit-base-patch16-224": 86.57,
    "google/siglip-base-patch16-224": 203.16,
    "openai/clip-vit-base-patch16": 149.62,
    "openai/clip-vit-large-patch14": 427.62,
}
"""Millions of parameters of the published checkpoints."""


@pytest.mark.parametrize(("name", "millions"), KNOWN.items())
def test_a_well_known_architecture_has_as_many_parameters_as_its_checkpoint(name, millions):
    from ttreg_interp.hooked.sources._transformers_architectures import configuration

    config = configuration(name)
    with torch.device("meta"):
        module = getattr(hf, config.architectures[0])(config)
    assert sum(p.numel() for p in module.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_a_well_known_name_needs_no_hub_for_random_weights(monkeypatch):
    monkeypatch.setattr(hf.AutoConfig, "from_pretrained", _unreachable)
    model = load("hf:facebook/dinov2-small?random")
    assert (model.image_size, model.cfg.n_layers, model.cfg.d_model) == ((518, 518), 12, 384)
    assert model.preprocess(_image(40, 60)).shape == (3, 518, 518)


def _unreachable(*args, **kwargs):
    raise OSError("We couldn't connect to the hub.\nCheck your internet connection.")


def test_random_weights_of_an_unknown_name_say_which_names_are_known():
    with pytest.raises(UnsupportedModelError, match="nothing up on a hub.*facebook/dinov2-large"):
        load("hf:someone/some-model?random")


def test_a_hub_out_of_reach_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(hf.AutoConfig, "from_pretrained", _unreachable)
    with pytest.raises(ArtifactError) as caught:
        load("hf:someone/some-model")
    assert "couldn't connect to the hub" in str(caught.value)
    assert "'hf:path/to/directory'" in str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.__cause__ is None


def test_a_model_without_a_known_tower_is_refused_before_its_weights_are_read(tmp_path):
    _language().save_pretrained(tmp_path)
    with pytest.raises(
        UnsupportedModelError, match="'qwen2' model.*supported towers are vit, deit"
    ):
        load(f"hf:{tmp_path}")


def test_an_image_size_that_the_source_cannot_interpolate_to_is_refused(tmp_path):
    make(hf.ViTModel, image_size=(32, 64)).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"made for \(32, 64\) pixels"):
        load(f"hf:{tmp_path}", image_size=64)


# ------------------------------------------------------------------ preprocessing


PROCESSORS = {
    "CLIP": hf.CLIPImageProcessor(
        size={"shortest_edge": 54}, crop_size={"height": 48, "width": 48}
    ),
    "DeiT": hf.DeiTImageProcessor(
        size={"height": 54, "width": 54}, crop_size={"height": 48, "width": 48}
    ),
    "SigLIP": hf.SiglipImageProcessor(size={"height": 48, "width": 48}),
    "DINOv3": hf.DINOv3ViTImageProcessor(size={"height": 48, "width": 48}),
}


@pytest.mark.parametrize("family", PROCESSORS)
def test_images_become_what_the_saved_processor_makes_of_them(family, saved):
    processor, image = PROCESSORS[family], _image(70, 90)
    _, folder = saved(family, processor)
    model = load(f"hf:{folder}")
    assert torch.equal(
        model.preprocess(image), processor(image, return_tensors="pt")["pixel_values"][0]
    )
    assert model.preprocess(image.convert("L")).shape == (3, 48, 48)


@pytest.mark.parametrize("family", PROCESSORS)
def test_another_image_size_is_honoured_with_the_processor_s_own_margin(family, saved):
    _, folder = saved(family, PROCESSORS[family])
    model = load(f"hf:{folder}", image_size=(32, 96))
    pixels = model.preprocess(_image(70, 90))
    assert pixels.shape == (3, 32, 96)
    assert torch.isfinite(model(pixels[None])).all()
    # Twice the size, and twice the picture: the margin that is cropped away has grown alike.
    twice = load(f"hf:{folder}", image_size=96).preprocess(_smooth())
    once = load(f"hf:{folder}").preprocess(_smooth())
    half = nn.functional.interpolate(twice[None], scale_factor=0.5, mode="area")[0]
    torch.testing.assert_close(half, once, atol=0.1, rtol=0)


def _smooth() -> Image.Image:
    """A colour gradient, which shows where a crop was made and not how pixels were interpolated."""
    ramp = np.linspace(0, 255, 192)
    return Image.fromarray(
        np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], 128.0), -1).astype(np.uint8)
    )


def test_a_processor_of_tiles_or_patches_gives_way_to_whole_images(saved):
    _, folder = saved(
        "SigLIP 2 tower", hf.Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=9)
    )
    model = load(f"hf:{folder}")
    plain = hf.ViTImageProcessor(size={"height": 48, "width": 48})
    image = _image(70, 90)
    assert torch.equal(
        model.preprocess(image), plain(image, return_tensors="pt")["pixel_values"][0]
    )


def test_without_a_saved_processor_the_family_s_defaults_are_taken(saved):
    _, folder = saved("DINOv2")
    pixels = load(f"hf:{folder}").preprocess(Image.new("RGB", (60, 60), (255, 255, 255)))
    white = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(pixels, white[:, None, None].expand(3, 48, 48))


def test_a_model_in_hand_tells_its_preprocessing_if_it_came_from_a_directory(saved):
    from ttreg_interp.hooked.sources import default_preprocess

    module, folder = saved("CLIP tower", PROCESSORS["CLIP"])
    image = _image(70, 90)
    transform = default_preprocess(hf.CLIPVisionModel.from_pretrained(folder), (64, 64))
    assert transform(image).shape == (3, 64, 64)
    assert default_preprocess(module, (64, 64)) is None


# ------------------------------------------------------------------ texts


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<s>", "</s>", "a", "photo", "of", "cat", "dog", "<unk>"]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="</s>", eos_token="</s>"
    )
    fast.save_pretrained(folder)


@pytest.mark.parametrize("family", ["CLIP", "SigLIP"])
@torch.no_grad()
def test_texts_are_embedded_as_the_source_embeds_them(family, saved):
    module, folder = saved(family)
    _tokenizer(folder)
    text = load(f"hf:{folder}").text
    tokens = text.tokenize(["a photo of a cat", "dog"])
    assert tokens.tolist() == [[0, 2, 3, 4, 2, 5, 1, 1], [0, 6, 1, 1, 1, 1, 1, 1]]
    expected = module.get_text_features(tokens).pooler_output
    assert torch.equal(text.encode_text(["a photo of a cat", "dog"]), expected)


@torch.no_grad()
def test_clip_s_padding_is_never_read(saved):
    module, folder = saved("CLIP")
    _tokenizer(folder)
    unpadded = module.get_text_features(torch.tensor([[0, 6, 1]])).pooler_output
    torch.testing.assert_close(load(f"hf:{folder}").text.encode_text(["dog"]), unpadded)


def test_a_text_tower_without_a_tokenizer_says_so_when_it_is_used(saved, monkeypatch):
    _, folder = saved("CLIP")
    monkeypatch.setattr(hf.AutoTokenizer, "from_pretrained", _unreachable)
    text = load(f"hf:{folder}").text
    with pytest.raises(ArtifactError, match="no tokenizer there"):
        text.encode_text(["a cat"])
