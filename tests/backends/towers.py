"""Tiny random vision transformers of the sizes that the examples of interventions are made for."""

import copy
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import transformers as hf
from torch import nn

from tests.hooked.sources import dinov2_stand_in
from tests.hooked.sources.hf_families import randomised
from tests.interventions.models import D_MLP, D_MODEL, GRID, N_HEADS, N_LAYERS, eva, model, timm_vit
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


def _hub_dinov2() -> nn.Module:
    """DINOv2's hub code without a fused kernel, under the name that it has there."""
    name = "dinov2.models.vision_transformer"
    spec = importlib.util.spec_from_file_location(name, dinov2_stand_in.__file__)
    assert spec is not None and spec.loader is not None
    hub: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hub)
    return hub.DinoVisionTransformer(
        GRID * 8, 8, D_MODEL, N_LAYERS, N_HEADS, registers=2, classes=5, fused=False
    )


def _unfused() -> nn.Module:
    module = timm_vit()
    for block in module.get_submodule("blocks"):
        block.attn.fused_attn = False
    return module


SIGLIP_2 = {
    **{name: value for name, value in SIZE.items() if name != "image_size"},
    "num_patches": 16,
}


TOWERS: dict[str, Callable[[], nn.Module]] = {
    "timm": lambda: copy.deepcopy(model("timm with [CLS]").source),
    "timm, trained registers": lambda: copy.deepcopy(model("timm with 4 trained registers").source),
    "timm, inner norm": lambda: randomised(timm_vit(scale_attn_norm=True)),
    "timm, not fused": lambda: randomised(_unfused()),
    "timm Eva, rotating": lambda: copy.deepcopy(model("timm Eva with rotation").source),
    "timm Eva, SwiGLU and inner norms": lambda: randomised(
        eva(swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True)
    ),
    "timm Eva, split projections": lambda: randomised(
        eva(attn_type="rope", qkv_fused=False, init_values=0.5)
    ),
    "DINOv2 hub": lambda: randomised(_hub_dinov2()),
    "open_clip": lambda: copy.deepcopy(model("open_clip with ln_pre").source),
    "ViT": _hf(hf.ViTModel),
    "CLIP": _hf(hf.CLIPVisionModel),
    "SigLIP": _hf(hf.SiglipVisionModel),
    "SigLIP 2": _hf(hf.Siglip2VisionModel, SIGLIP_2),
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
