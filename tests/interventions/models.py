"""Tiny random models, one for every layout of the token axis."""

from functools import cache
from typing import Any

import torch
from torch import nn

from ttreg_interp.hooked import HookedViT

N_LAYERS, D_MODEL, N_HEADS, D_MLP, GRID = 3, 32, 2, 128, 4
"""Sizes that all of them share: images of 32 x 32 pixels in 4 x 4 patches."""


def timm_vit(**options: Any) -> nn.Module:
    """timm's VisionTransformer of these sizes."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=D_MODEL,
        depth=N_LAYERS,
        num_heads=N_HEADS,
        **{"num_classes": 5, **options},
    )


def eva(**options: Any) -> nn.Module:
    """timm's Eva of these sizes: rotary positions, four trained registers."""
    from timm.models.eva import Eva

    return Eva(
        img_size=32,
        patch_size=8,
        embed_dim=D_MODEL,
        depth=N_LAYERS,
        num_heads=N_HEADS,
        mlp_ratio=D_MLP / D_MODEL,
        num_classes=5,
        num_reg_tokens=4,
        use_rot_pos_emb=True,
        use_abs_pos_emb=False,
        **options,
    )


def _open_clip() -> nn.Module:
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(
        image_size=32,
        patch_size=8,
        width=D_MODEL,
        layers=N_LAYERS,
        heads=N_HEADS,
        mlp_ratio=D_MLP / D_MODEL,
        output_dim=6,
    )


def _dinov2() -> nn.Module:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    config = Dinov2WithRegistersConfig(
        image_size=32,
        patch_size=8,
        hidden_size=D_MODEL,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        mlp_ratio=6,  # of which two thirds are neurons
        use_swiglu_ffn=True,
        num_register_tokens=2,
        layerscale_value=0.5,
    )
    return Dinov2WithRegistersModel(config)


LAYOUTS = {
    "timm with [CLS]": timm_vit,
    "timm SigLIP without [CLS]": lambda: timm_vit(
        class_token=False, global_pool="map", num_classes=0
    ),
    "timm with 4 trained registers": lambda: timm_vit(
        reg_tokens=4, no_embed_class=True, init_values=0.5, dynamic_img_size=True
    ),
    "timm Eva with rotation": eva,
    "open_clip with ln_pre": _open_clip,
    "transformers with gated MLP and 2 trained registers": _dinov2,
}


def model(layout: str, dtype: torch.dtype = torch.float32) -> HookedViT:
    """The model of a layout, with weights large enough for attention to be uneven."""
    return _model(layout, dtype)


@cache
def _model(layout: str, dtype: torch.dtype) -> HookedViT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = LAYOUTS[layout]().eval()
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.6 if "token" in name else 1.5 / D_MODEL**0.5)
            elif "bias" in name:
                nn.init.normal_(parameter, std=0.3)
    return HookedViT.wrap(module.to(dtype))


def images(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """`n` different images."""
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)).to(dtype)


def n_prefix(layout: str) -> int:
    """Rows before the patches."""
    return model(layout).layout().n_prefix
