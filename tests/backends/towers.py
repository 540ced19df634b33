"""Tiny random vision transformers of the sizes that the examples of interventions are made for."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import transformers as hf
from torch import nn

from tests.hooked.sources.hf_families import randomised
from tests.interventions.models import D_MLP, D_MODEL, GRID, N_HEADS, N_LAYERS, model
from ttreg_interp.backends.nnsight import TracedViT
from ttreg_interp.hooked import HookedViT

SIZE = {
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "intermediate_size": D_MLP,
    "image_size": GRID * 8,
    "patch_size": 8,
}
DINOV2 = {name: value for name, value in SIZE.items() if name != "intermediate_size"}


def _hf(model_class: Any, size: dict[str, Any] = SIZE, **changes: Any) -> Callable[[], nn.Module]:
    return lambda: randomised(model_class(model_class.config_class(**size, **changes)))


def _inner_norm() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=D_MODEL,
        depth=N_LAYERS,
        num_heads=N_HEADS,
        num_classes=5,
        scale_attn_norm=True,
    )


TOWERS: dict[str, Callable[[], nn.Module]] = {
    "timm": lambda: copy.deepcopy(model("timm with [CLS]").source),
    "timm, trained registers": lambda: copy.deepcopy(model("timm with 4 trained registers").source),
    "timm, inner norm": lambda: randomised(_inner_norm()),
    "open_clip": lambda: copy.deepcopy(model("open_clip with ln_pre").source),
    "ViT": _hf(hf.ViTModel),
    "CLIP": _hf(hf.CLIPVisionModel),
    "SigLIP": _hf(hf.SiglipVisionModel),
    "DINOv2": _hf(hf.Dinov2Model, DINOV2, layerscale_value=0.5),
    "DINOv2, eager": _hf(hf.Dinov2Model, DINOV2, attn_implementation="eager"),
    "DINOv3": _hf(hf.DINOv3ViTModel, num_register_tokens=4),
    "InternVL": _hf(hf.InternVLVisionModel),
}


@cache
def both(tower: str) -> tuple[HookedViT, TracedViT]:
    """The same weights under hook points, and under nnsight."""
    module = TOWERS[tower]()
    return HookedViT.wrap(module), TracedViT.trace(copy.deepcopy(module))
