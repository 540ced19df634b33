"""A vision-language model of the embedded kind: planted tower, random projector and language model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.interventions import NeuronSet
from ttreg_interp.testbed import planted_vit

IMAGE = 3
"""Id of the visual token in the embedded model's vocabulary of 64."""
PROMPT = "USER: <image>\nWhat is shown in this image? ASSISTANT:"
"""For a real model without a chat template of its own."""


@dataclass(frozen=True, eq=False)
class Talker:
    """A vision-language model, its tower under hook points, and how pictures enter it."""

    vlm: Any
    """Of transformers."""
    tower: HookedViT
    """Its vision tower."""
    inputs: Any
    """From pictures to what the model takes."""
    truth: NeuronSet | None = None
    """The tower's register neurons, where they were planted."""

    @property
    def projector(self) -> nn.Module:
        """What maps visual tokens into the language model.

        Raises:
            UnsupportedModelError: it has another name than in the LLaVA family.
        """
        for name, module in self.vlm.named_modules():
            if name.endswith("multi_modal_projector"):
                return module
        raise UnsupportedModelError(
            f"{type(self.vlm).__name__} has no multi_modal_projector; take a model of the LLaVA family."
        )


def talker(spec: str, image_size: int | None = None) -> Talker:
    """`testbed:planted`, or `hf:DIRECTORY` of a LLaVA-style model of transformers.

    Raises:
        UnsupportedModelError: another spec.
    """
    if spec == "testbed:planted":
        return _embedded(image_size or 224)
    if not spec.startswith("hf:"):
        raise UnsupportedModelError(
            f"{spec} is no vision-language model: there is no language model behind it. Give "
            "hf:ORGANISATION/MODEL (or hf:DIRECTORY) of the LLaVA family, e.g. "
            "hf:llava-hf/llava-1.5-7b-hf."
        )
    from transformers import AutoModelForImageTextToText, AutoProcessor

    name = spec.removeprefix("hf:")
    vlm = AutoModelForImageTextToText.from_pretrained(name).eval()
    processor: Any = AutoProcessor.from_pretrained(name)

    def inputs(pictures: list[Image.Image]) -> Mapping[str, Tensor]:
        texts = [PROMPT] * len(pictures)
        return dict(processor(images=pictures, text=texts, padding=True, return_tensors="pt"))

    return Talker(vlm, HookedViT.wrap(vlm), inputs)


def _embedded(image_size: int) -> Talker:
    """LLaVA with the planted ViT as CLIP's tower, its other weights random; seeded."""
    import transformers as hf

    planted = planted_vit(layout="open_clip", image_size=image_size)
    shape = planted.config.shape
    vision = hf.CLIPVisionConfig(
        hidden_size=shape.width,
        intermediate_size=4 * shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        image_size=image_size,
        patch_size=shape.patch_size,
        hidden_act="gelu",
    )
    text = hf.LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=64,
        initializer_range=0.2,
    )
    config = hf.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vlm = hf.LlavaForConditionalGeneration(config).eval()
    tower = HookedViT.wrap(vlm)
    tower.source.load_state_dict(_as_clip(planted.module.state_dict()))

    def inputs(pictures: list[Image.Image]) -> dict[str, Tensor]:
        pixels = torch.stack([_normalised(picture.resize((image_size, image_size))) for picture in pictures])  # fmt: skip
        n_visual = (image_size // shape.patch_size) ** 2
        ids = torch.tensor([1, *[IMAGE] * n_visual, 7, 9, 11])
        ids = ids.expand(len(pictures), -1)
        return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

    return Talker(vlm, tower, inputs, NeuronSet.of(planted.truth))


def _normalised(picture: Image.Image) -> Float[Tensor, "channel height width"]:
    from torchvision.transforms.functional import pil_to_tensor

    return pil_to_tensor(picture).float() / 127.5 - 1


_ROLES = {
    "conv1.weight": "embeddings.patch_embedding.weight",
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre": "pre_layrnorm",
    "ln_post": "post_layernorm",
    "transformer.resblocks": "encoder.layers",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.": "self_attn.",
    "c_fc": "fc1",
    "c_proj": "fc2",
}
"""What open_clip calls a part -> what transformers' CLIP calls it."""


def _as_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tower's weights under the names of transformers; its projection is not part of a tower."""
    found = {}
    for name, value in weights.items():
        if name == "proj":
            continue
        for own, theirs in _ROLES.items():
            name = name.replace(own, theirs)
        if "in_proj_" in name:
            parts = value.chunk(3)
            for side, part in zip("qkv", parts, strict=True):
                found[name.replace("in_proj_", f"{side}_proj.")] = part
        else:
            found[name] = value
    return found
