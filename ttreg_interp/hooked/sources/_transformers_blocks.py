"""transformers: the attention layers, MLPs and blocks of its vision transformers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ttreg_interp.hooked.parts import AttentionParts, BlockParts, MLPParts, Positions
from ttreg_interp.hooked.sources import common

Gamma = Callable[[], Tensor] | None
Rotate = Callable[[Tensor, Tensor, Positions], tuple[Tensor, Tensor]] | None


def vit(layer: Any) -> BlockParts:
    """A block of ViT or DeiT."""
    attn = layer.attention
    return BlockParts(
        ln1=layer.layernorm_before,
        attn=_attention(attn, attn.num_attention_heads, attn.scaling, attn.o_proj),
        ln2=layer.layernorm_after,
        mlp=_mlp(layer.mlp),
    )


def clip(layer: Any) -> BlockParts:
    """A block of CLIP, SigLIP or SigLIP 2."""
    attn = layer.self_attn
    return BlockParts(
        ln1=layer.layer_norm1,
        attn=_attention(attn, attn.num_heads, attn.scale, attn.out_proj),
        ln2=layer.layer_norm2,
        mlp=_mlp(layer.mlp),
    )


def dinov2(layer: Any) -> BlockParts:
    """A block of DINOv2, with trained registers or without."""
    attn = layer.attention
    gamma_1, gamma_2 = _lambda1(layer.layer_scale1), _lambda1(layer.layer_scale2)
    return BlockParts(
        ln1=layer.norm1,
        attn=_attention(attn, attn.num_attention_heads, attn.scaling, attn.o_proj, gamma_1),
        ln2=layer.norm2,
        mlp=_mlp(layer.mlp, gamma_2),
    )


def dinov3(layer: Any) -> BlockParts:
    """A block of DINOv3."""
    attn = layer.attention
    gamma_1, gamma_2 = _lambda1(layer.layer_scale1), _lambda1(layer.layer_scale2)
    return BlockParts(
        ln1=layer.norm1,
        attn=_attention(attn, attn.num_heads, attn.scaling, attn.o_proj, gamma_1, _rotate),
        ln2=layer.norm2,
        mlp=_mlp(layer.mlp, gamma_2),
    )


def internvl(layer: Any) -> BlockParts:
    """A block of InternVL's vision tower."""
    attn, gamma_1 = layer.attention, lambda: layer.lambda_1
    plain = _attention(attn, attn.num_heads, attn.scale, attn.projection_layer, gamma_1)
    # Its query and key norms read all heads at once, before the split.
    normed = common.split_qkv(
        lambda x: attn.q_norm(attn.q_proj(x)),
        lambda x: attn.k_norm(attn.k_proj(x)),
        attn.v_proj,
        attn.num_heads,
    )
    return BlockParts(
        ln1=layer.layernorm_before,
        attn=replace(plain, qkv=normed),
        ln2=layer.layernorm_after,
        mlp=_mlp(layer.mlp, lambda: layer.lambda_2),
    )


def _lambda1(scale: Any) -> Callable[[], Tensor]:
    return lambda: scale.lambda1


def _attention(
    attn: Any,
    n_heads: int,
    scale: float,
    out: nn.Linear,
    gamma: Gamma = None,
    rotate: Rotate = None,
) -> AttentionParts:
    return AttentionParts(
        n_heads=n_heads,
        d_head=attn.head_dim,
        qkv=common.split_qkv(attn.q_proj, attn.k_proj, attn.v_proj, n_heads),
        qkv_weights=lambda: (attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight),
        qkv_biases=lambda: (attn.q_proj.bias, attn.k_proj.bias, attn.v_proj.bias),
        out=out,
        scale=scale,
        rotate=rotate,
        gamma=gamma,
    )


def _rotate(q: Tensor, k: Tensor, positions: Positions) -> tuple[Tensor, Tensor]:
    """DINOv3's rotary embedding on the patches, which are the last rows; prefix rows stay."""
    cos, sin = positions
    return _turn(q, cos, sin), _turn(k, cos, sin)


def _turn(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # transformers' own function counts the prefix of q and k together; here k may be longer.
    n_prefix = heads.shape[2] - cos.shape[0]
    patches = heads[:, :, n_prefix:]
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((heads[:, :, :n_prefix], turned), dim=2).type_as(heads)


def _mlp(mlp: Any, gamma: Gamma = None) -> MLPParts:
    if common.is_instance(mlp, "transformers", *_GATED):
        return MLPParts(
            project=lambda x: (mlp.gate_proj(x), mlp.up_proj(x)),
            act=mlp.act_fn,
            out=mlp.down_proj,
            in_weights=common.linear_weights(mlp.up_proj),
            gate_weights=common.linear_weights(mlp.gate_proj),
            gamma=gamma,
        )
    if common.is_instance(mlp, "transformers", "DINOv3ViTMLP"):
        first, act, out = mlp.up_proj, mlp.act_fn, mlp.down_proj
    else:
        common.require(common.is_instance(mlp, "transformers", *_PLAIN), mlp, "this MLP")
        first, act, out = mlp.fc1, mlp.activation_fn, mlp.fc2
    return MLPParts(
        project=lambda x: (first(x), None),
        act=act,
        out=out,
        in_weights=common.linear_weights(first),
        gamma=gamma,
    )


_GATED = ("Dinov2SwiGLUFFN", "Dinov2WithRegistersSwiGLUFFN", "DINOv3ViTGatedMLP")
_PLAIN = (
    "ViTMLP",
    "DeiTMLP",
    "CLIPMLP",
    "SiglipMLP",
    "Siglip2MLP",
    "Dinov2MLP",
    "Dinov2WithRegistersMLP",
    "InternVLVisionMLP",
)
