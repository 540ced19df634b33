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


def llava(kind: str) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {
        "clip": hf.CLIPVisionConfig,
        "siglip": hf.SiglipVisionConfig,
    }[kind](**sizes, intermediate_size=64, image_size=32, patch_size=8)
    text = hf.LlamaConfig(
        **sizes,
        num_key_value_heads=2,
        intermediate_size=32,
        vocab_size=64,
        max_position_embeddings=64,
    )
    config = hf.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_select_strategy="default" if kind == "clip" else "full",
    )
    model = hf.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module", params=["clip", "siglip"])
def vlm(request):
    return llava(request.param)


@pytest.fixture
def inputs():
    ids = torch.tensor([[1, *[IMAGE] * 16, 7, 9], [1, 5, *[IMAGE] * 16, 9]])
    return {"input_ids": ids, "pixel_values": torch.randn(2, 3, 32, 32)}


@torch.no_grad()
def test_without_an_edit_the_model_is_itself(vlm, inputs):
    expected = vlm(**inputs).logits
    with registered(vlm, Empty()):
        assert torch.allclose(vlm(**inputs).logits, expected, atol=1e-5)


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


@torch.no_grad()
def test_an_answer_is_generated_with_the_register(vlm, inputs):
    text = {**inputs, "max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with registered(vlm, REGISTER):
        tokens = vlm.generate(**text)
    assert tokens.shape[0] == 2 and tokens.shape[1] >= inputs["input_ids"].shape[1]


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


@pytest.mark.parametrize("ids", [[[1, 2]], [[1, *[IMAGE] * 15]], [[IMAGE, 1], [1, 1]]])
def test_texts_that_give_no_map_are_refused(vlm, ids):
    with pytest.raises(DataError, match="the same square number"):
        answer_attention(vlm, {"input_ids": torch.tensor(ids)})


def test_a_model_without_a_known_tower_is_refused():
    with pytest.raises(UnsupportedModelError), registered(torch.nn.Linear(2, 2), Empty()):
        pass
