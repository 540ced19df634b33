"""transformers' models by name: weights, preprocessing, texts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from hf_families import FAMILIES, PATCH, language, llava, make, noise, randomised
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from ttreg_interp.errors import ArtifactError, UnsupportedModelError
from ttreg_interp.hooked import HookedViT, load


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
    whole = llava(hf.LlavaForConditionalGeneration, FAMILIES["CLIP tower"]())
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
    assert model.preprocess(noise(40, 60)).shape == (3, 518, 518)


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
    language().save_pretrained(tmp_path)
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
    processor, image = PROCESSORS[family], noise(70, 90)
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
    pixels = model.preprocess(noise(70, 90))
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
    image = noise(70, 90)
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
    image = noise(70, 90)
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
