"""A tiny random model of every timm and open_clip variant that HookedViT covers."""

from collections.abc import Callable

import torch
from torch import nn


def _timm(**kwargs) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from timm.models.vision_transformer import VisionTransformer

        size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
        return VisionTransformer(**{**size, "num_classes": 5, **kwargs})

    return make


def _eva(**kwargs) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from timm.models.eva import Eva

        size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
        return Eva(**{**size, "num_classes": 5, **kwargs})

    return make


def _distilled() -> nn.Module:
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5
    )


def _open_clip(**kwargs) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from open_clip.transformer import VisionTransformer

        size = {
            "image_size": 32,
            "patch_size": 8,
            "width": 32,
            "layers": 2,
            "heads": 2,
            "mlp_ratio": 4,
        }
        return VisionTransformer(**{**size, "output_dim": 6, **kwargs})

    return make


def _quick_gelu() -> nn.Module:
    from open_clip.transformer import QuickGELU

    return _open_clip(act_layer=QuickGELU)()


def _swiglu(gate_last: bool) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from functools import partial

        from timm.layers import GluMlp

        layer = partial(GluMlp, act_layer=nn.SiLU, gate_last=gate_last)
        return _timm(mlp_layer=layer, init_values=0.5)()

    return make


def _gated() -> nn.Module:
    model = _timm()()
    for block in model.blocks:
        block.attn.gate = nn.Linear(32, 32)
    return model


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "timm plain": _timm(),
    "timm registers": _timm(reg_tokens=3, no_embed_class=True, init_values=0.5),
    "timm ln_pre": _timm(pre_norm=True),
    "timm no class token, average pooling": _timm(class_token=False, global_pool="avg"),
    "timm average pooling after the norm": _timm(global_pool="avg", fc_norm=False),
    "timm MAP head": _timm(class_token=False, global_pool="map"),
    "timm SwiGLU, gate first": _swiglu(gate_last=False),
    "timm SwiGLU, gate last": _swiglu(gate_last=True),
    "timm qk-norm, inner norms": _timm(qk_norm=True, scale_attn_norm=True, scale_mlp_norm=True),
    "timm no qkv bias": _timm(qkv_bias=False),
    "timm any image size": _timm(dynamic_img_size=True),
    "timm no head": _timm(num_classes=0),
    "timm distilled": _distilled,
    "timm gated attention": _gated,
    "eva": _eva(),
    "eva rotary, SwiGLU, inner norms": _eva(
        use_rot_pos_emb=True, swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True
    ),
    "eva rotary, registers, packed SwiGLU": _eva(
        use_rot_pos_emb=True,
        num_reg_tokens=2,
        swiglu_mlp=True,
        init_values=0.5,
        use_abs_pos_emb=False,
    ),
    "eva split qkv": _eva(use_rot_pos_emb=True, attn_type="rope", qkv_fused=False),
    "open_clip": _open_clip(),
    "open_clip QuickGELU": _quick_gelu,
    "open_clip LayerScale, no ln_pre": _open_clip(ls_init_value=0.5, no_ln_pre=True),
    "open_clip average pooling": _open_clip(pool_type="avg", final_ln_after_pool=True),
    "open_clip CoCa": _open_clip(
        attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=2, output_dim=8
    ),
    "open_clip parallel poolers": _open_clip(
        attentional_pool="parallel", attn_pooler_queries=4, attn_pooler_heads=2, output_dim=32
    ),
    "open_clip qk-norm": _open_clip(
        block_type="custom", qk_norm=True, scale_attn_inner=True, scale_fc=True
    ),
}


def make(name: str) -> nn.Module:
    """The model with every parameter random: no bias, gate or head keeps the value it starts from."""
    torch.manual_seed(0)
    module = FAMILIES[name]().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return module
