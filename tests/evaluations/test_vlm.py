"""A register in the tower of a tiny random LLaVA: what the language model sees, and what it looks at."""

import pytest
import torch
import transformers as hf

from ttreg_interp.errors import DataError, InterventionError, UnsupportedModelError
from ttreg_interp.evaluations.vlm import answer_attention, registered
from ttreg_interp.hooked import HookedViT
from ttreg_interp.interventions import Empty, TestTimeRegister, ZeroNeurons

IMAGE = 3
REGISTER = TestTimeRegister({0: range(20)})


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS = {
    # class, tower, what the projector takes, how many tokens an image of 4 x 4 patches becomes
    "clip": ("Llava", "CLIP", {"vision_feature_select_strategy": "default"}, 16),
    "clip, [CLS] too": ("Llava", "CLIP", {"vision_feature_select_strategy": "full"}, 17),
    "clip, two layers": ("Llava", "CLIP", {"vision_feature_layer": [-2, -1]}, 16),
    "siglip": ("Llava", "Siglip", {"vision_feature_select_strategy": "full"}, 16),
    "next": ("LlavaNext", "CLIP", {"image_grid_pinpoints": [[64, 64]]}, 88),
    "onevision": ("LlavaOnevision", "Siglip", {"image_grid_pinpoints": [[64, 64]]}, 88),
    "internvl": ("InternVL", "InternVL", {"image_seq_length": 4}, 4),
    "vip": ("VipLlava", "CLIP", {"vision_feature_layers": [-2, 1]}, 16),
}


def vlm_of(kind: str) -> hf.PreTrainedModel:
    """A tiny model of transformers with random weights."""
    name, tower, options, _ = KINDS[kind]
    square = (32, 32), (8, 8)
    size, patch = square if tower == "InternVL" else (32, 8)
    vision = getattr(hf, f"{tower}VisionConfig")(
        **SIZES, intermediate_size=64, image_size=size, patch_size=patch
    )
    if tower == "InternVL":
        vision.use_mean_pooling = False  # then the tower ends with a norm
    text = hf.LlamaConfig(
        **SIZES,
        num_key_value_heads=2,
        intermediate_size=32,
        vocab_size=64,
        max_position_embeddings=128,
    )
    config = getattr(hf, f"{name}Config")(vision_config=vision, text_config=text, **options)
    config.image_token_id = IMAGE
    model = getattr(hf, f"{name}ForConditionalGeneration")(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def asked(kind: str) -> dict[str, torch.Tensor]:
    """Two texts with an image each; of five tiles where the model takes tiles."""
    count = KINDS[kind][3]
    ids = torch.tensor([[1, *[IMAGE] * count, 7, 9], [1, 5, *[IMAGE] * count, 9]])
    generator = torch.Generator().manual_seed(1)
    tiles = {"image_sizes": torch.tensor([[64, 64]] * 2)} if count == 88 else {}
    shape = (2, 5, 3, 32, 32) if tiles else (2, 3, 32, 32)
    return {"input_ids": ids, "pixel_values": torch.randn(shape, generator=generator), **tiles}


@pytest.fixture(scope="module", params=["clip", "siglip"])
def vlm(request):
    return vlm_of(request.param)


@pytest.fixture
def inputs():
    return asked("clip")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_empty_edit_changes_no_bit_and_a_register_no_token_count(kind):
    vlm, inputs = vlm_of(kind), asked(kind)
    before = vlm(**inputs).logits
    with registered(vlm, Empty()):
        assert torch.equal(vlm(**inputs).logits, before)
    with registered(vlm, REGISTER):
        after = vlm(**inputs).logits
        tokens = vlm.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert after.shape == before.shape and not torch.allclose(after, before, atol=1e-4)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(tokens[:, :length], inputs["input_ids"]) and tokens.shape[1] > length
    assert torch.equal(vlm(**inputs).logits, before)


@torch.no_grad()
def test_the_register_is_dropped_before_the_projector_and_changes_what_it_should(vlm, inputs):
    layer = vlm.config.vision_feature_layer
    prefix = 1 if vlm.config.vision_feature_select_strategy == "default" else 0
    seen = []
    watch = vlm.model.multi_modal_projector.register_forward_pre_hook(
        lambda module, args: seen.append(args[0])
    )
    before = vlm(**inputs).logits
    with registered(vlm, REGISTER):
        after = vlm(**inputs).logits
    watch.remove()
    tower = HookedViT.wrap(vlm)
    name = f"blocks.{layer % 3}.hook_resid_pre"
    with tower.intervened(REGISTER):
        cache = tower.run_with_cache(inputs["pixel_values"])[1]
    rows = cache[name]
    expected = torch.cat((rows[:, :prefix], rows[:, prefix + 1 :]), dim=1)[:, prefix:]
    assert seen[0].shape == seen[1].shape == (2, 16, 32)
    assert torch.allclose(seen[1], expected, atol=1e-5)
    assert not torch.allclose(before, after, atol=1e-4)
    assert torch.equal(vlm(**inputs).logits, before)


def test_the_tower_comes_back_also_after_an_error(vlm, inputs):
    tower = HookedViT.wrap(vlm).source
    with pytest.raises(KeyboardInterrupt), registered(vlm, REGISTER):
        raise KeyboardInterrupt
    assert "forward" not in vars(tower)
    with pytest.raises(InterventionError, match="No forward pass"), registered(vlm, REGISTER):
        pass
    with pytest.raises(InterventionError, match="Layer 7"), registered(vlm, ZeroNeurons({7: [1]})):
        pass
    assert "forward" not in vars(tower)


@torch.no_grad()
def test_attention_of_the_answer_is_the_mean_over_layers_and_heads(vlm, inputs):
    found = answer_attention(vlm, inputs)
    vlm.set_attn_implementation("eager")
    layers = vlm(**inputs, output_attentions=True).attentions
    vlm.set_attn_implementation("sdpa")
    whole = torch.stack(layers).mean(dim=(0, 2))[:, -1]
    for text, (start, grid) in enumerate(zip((1, 2), found, strict=True)):
        assert torch.allclose(grid.flatten(), whole[text, start : start + 16], atol=1e-6)
    assert found.shape == (2, 4, 4)


@torch.no_grad()
def test_padding_is_no_answer(vlm, inputs):
    mask = torch.ones_like(inputs["input_ids"])
    mask[1, -1] = 0
    with pytest.raises(DataError, match="Place -1 is padding in text 1. Pad on the left"):
        answer_attention(vlm, {**inputs, "attention_mask": mask})


@torch.no_grad()
def test_attention_is_looked_at_with_the_tower_as_it_runs(vlm, inputs):
    """Only the language model changes its kernel, and takes its own again."""
    seen = []
    watch = vlm.model.vision_tower.register_forward_pre_hook(
        lambda module, args: seen.append(module.config._attn_implementation)
    )
    answer_attention(vlm, inputs)
    watch.remove()
    assert seen == ["sdpa"] and vlm.config.get_text_config()._attn_implementation == "sdpa"


@pytest.mark.parametrize("ids", [[[1, 2]], [[1, *[IMAGE] * 15]], [[IMAGE, 1], [1, 1]]])
def test_texts_that_give_no_map_are_refused(vlm, ids):
    with pytest.raises(DataError, match="the same square number"):
        answer_attention(vlm, {"input_ids": torch.tensor(ids)})


def test_a_model_without_a_known_tower_is_refused():
    with pytest.raises(UnsupportedModelError), registered(torch.nn.Linear(2, 2), Empty()):
        pass
