"""A tiny random model of every transformers class that HookedViT covers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from torch import nn

GRID, PATCH, WIDTH = 3, 16, 32
SIZE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "patch_size": PATCH,
    "image_size": GRID * PATCH,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 12,
    "max_position_embeddings": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def make(model_class: Any, *, pooler: bool | None = None, **changes: Any) -> nn.Module:
    """A random model of two layers; `changes` go to its configuration."""
    config_class = model_class.config_class
    vision = config_class.sub_configs.get("vision_config")
    size = (
        _fit(config_class)
        if vision is None
        else {"vision_config": _fit(vision), "text_config": TEXT}
    )
    config = config_class(**{**size, **changes})
    module = (
        model_class(config) if pooler is None else model_class(config, add_pooling_layer=pooler)
    )
    return randomised(module)


def _fit(config_class: Any) -> dict[str, Any]:
    """SIZE in the words of one configuration class."""
    size = dict(SIZE)
    if config_class in (hf.Dinov2Config, hf.Dinov2WithRegistersConfig):
        size.pop("intermediate_size")
    if config_class is hf.Siglip2VisionConfig:
        size.pop("image_size")
        size["num_patches"] = GRID**2
    return size


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """No bias, scale or token keeps the value it starts from."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "ViT": lambda: make(hf.ViTModel),
    "ViT without pooler": lambda: make(hf.ViTModel, pooler=False),
    "ViT without qkv bias": lambda: make(hf.ViTModel, qkv_bias=False),
    "ViT classifier": lambda: make(hf.ViTForImageClassification, num_labels=5),
    "ViT classifier without classes": lambda: make(hf.ViTForImageClassification, num_labels=0),
    "DeiT": lambda: make(hf.DeiTModel),
    "DeiT classifier": lambda: make(hf.DeiTForImageClassification, num_labels=5),
    "DeiT with teacher": lambda: make(hf.DeiTForImageClassificationWithTeacher, num_labels=5),
    "CLIP": lambda: make(hf.CLIPModel, projection_dim=24),
    "CLIP tower": lambda: make(hf.CLIPVisionModel),
    "CLIP tower, projected": lambda: make(hf.CLIPVisionModelWithProjection, projection_dim=24),
    "CLIP classifier": lambda: make(hf.CLIPForImageClassification, num_labels=5),
    "SigLIP": lambda: make(hf.SiglipModel),
    "SigLIP tower": lambda: make(hf.SiglipVisionModel),
    "SigLIP tower without head": lambda: make(hf.SiglipVisionModel, vision_use_head=False),
    "SigLIP classifier": lambda: make(hf.SiglipForImageClassification, num_labels=5),
    "SigLIP 2": lambda: make(hf.Siglip2Model),
    "SigLIP 2 tower": lambda: make(hf.Siglip2VisionModel),
    "SigLIP 2 classifier": lambda: make(hf.Siglip2ForImageClassification, num_labels=5),
    "DINOv2": lambda: make(hf.Dinov2Model, layerscale_value=0.5),
    "DINOv2 SwiGLU": lambda: make(hf.Dinov2Model, use_swiglu_ffn=True),
    "DINOv2 classifier": lambda: make(hf.Dinov2ForImageClassification, num_labels=5),
    "DINOv2 registers": lambda: make(hf.Dinov2WithRegistersModel, num_register_tokens=3),
    "DINOv2 registers SwiGLU": lambda: make(hf.Dinov2WithRegistersModel, use_swiglu_ffn=True),
    "DINOv2 registers classifier": lambda: make(
        hf.Dinov2WithRegistersForImageClassification, num_labels=5
    ),
    "DINOv3": lambda: make(hf.DINOv3ViTModel, num_register_tokens=4),
    "DINOv3 without registers": lambda: make(hf.DINOv3ViTModel, num_register_tokens=0),
    "DINOv3 gated": lambda: make(
        hf.DINOv3ViTModel, use_gated_mlp=True, hidden_act="silu", num_register_tokens=4
    ),
    "InternVL": lambda: make(hf.InternVLVisionModel),
    "InternVL RMSNorm, qk-norm": lambda: make(
        hf.InternVLVisionModel, norm_type="rms_norm", use_qk_norm=True, attention_bias=True
    ),
    "InternVL [CLS]": lambda: make(hf.InternVLVisionModel, use_mean_pooling=False),
}


def language() -> Any:
    """The configuration of a tiny language model."""
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


def llava(model_class: Any, vision: Any) -> nn.Module:
    """A LLaVA-style model around a tower of the configuration of `vision`."""
    config = model_class.config_class(
        vision_config=vision.config, text_config=language(), image_token_id=3, image_token_index=3
    )
    return model_class(config).eval()


def noise(height: int, width: int) -> Image.Image:
    """An image of random pixels."""
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )
