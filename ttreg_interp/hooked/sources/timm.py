"""timm: VisionTransformer and its variants, VisionTransformerDistilled, Eva."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.hooked.parts import AttentionParts, BlockParts, MLPParts, Tokens, ViTParts
from ttreg_interp.hooked.sources import Loaded, Request, common


def tower(module: nn.Module) -> nn.Module | None:
    """`module` itself if it is one of timm's plain vision transformers."""
    return module if common.is_instance(module, "timm", "VisionTransformer", "Eva") else None


def parts(module: Any) -> ViTParts:
    """Where timm keeps the parts of a VisionTransformer or an Eva."""
    distilled = common.is_instance(module, "timm", "VisionTransformerDistilled")
    is_eva = common.is_instance(module, "timm", "Eva")
    rotary = is_eva and module.rope is not None
    norm_after_pool = isinstance(module.norm, nn.Identity)
    linear_head = isinstance(module.head, nn.Linear) and not distilled
    return ViTParts(
        family=common.class_name(module),
        embed=partial(_embed, module),
        ln_pre=common.or_none(module.norm_pre),
        blocks=tuple(
            _block(block, layer, is_eva, rotary) for layer, block in enumerate(module.blocks)
        ),
        ln_final=common.or_none(module.fc_norm if norm_after_pool else module.norm),
        norm_after_pool=norm_after_pool,
        pool=(lambda x: x) if distilled else module.pool,
        project=module.forward_head
        if distilled
        else (lambda pooled: module.head(module.head_drop(pooled))),
        unembed=(lambda: (module.head.weight, module.head.bias)) if linear_head else None,
        reference=module,
        is_classifier=module.num_classes > 0,
        n_cls=(module.cls_token is not None) + distilled,
        n_trained_registers=module.num_prefix_tokens - (module.cls_token is not None) - distilled,
        image_size=tuple(module.patch_embed.img_size),
        patch_size=_patch_size(module.patch_embed),
        resizable=module.dynamic_img_size,
        n_channels=_n_channels(module),
    )


def _patch_size(patch_embed: Any) -> tuple[int, int]:
    """Pixels of one token; a hybrid stem's own patch size counts its feature map instead."""
    (height, width), (rows, columns) = patch_embed.img_size, patch_embed.grid_size
    return height // rows, width // columns


def _n_channels(module: Any) -> int:
    first = next(layer for layer in module.patch_embed.modules() if isinstance(layer, nn.Conv2d))
    return first.in_channels


def _embed(module: Any, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
    embedded = module._pos_embed(module.patch_embed(pixels))
    # Eva returns the rotary table beside the tokens.
    return embedded if isinstance(embedded, tuple) else (embedded, None)


def _block(block: Any, layer: int, is_eva: bool, rotary: bool) -> BlockParts:
    plain = common.is_instance(block, "timm", "Block", "EvaBlock")
    common.require(plain, block, "this kind of block (post-norm, parallel or differential)")
    gammas = (block.gamma_1, block.gamma_2) if is_eva else (block.ls1, block.ls2)
    gamma_1, gamma_2 = (
        _gamma(block, f"gamma_{i}" if is_eva else f"ls{i}", g) for i, g in enumerate(gammas, 1)
    )
    return BlockParts(
        ln1=block.norm1,
        attn=_attention(block.attn, layer, rotary, gamma_1),
        ln2=block.norm2,
        mlp=_mlp(block.mlp, gamma_2),
    )


def _gamma(block: Any, name: str, value: Any) -> Callable[[], Tensor] | None:
    if value is None or isinstance(value, nn.Identity):
        return None
    if isinstance(value, nn.Parameter):
        return lambda: getattr(block, name)
    return lambda: value.gamma


def _attention(
    attn: Any, layer: int, rotary: bool, gamma: Callable[[], Tensor] | None
) -> AttentionParts:
    known = common.is_instance(attn, "timm", "Attention", "AttentionRope", "EvaAttention")
    common.require(known, attn, "this attention")
    groups = getattr(attn, "num_kv_groups", 1)
    common.require(groups == 1, attn, "grouped-query attention")
    norms = {"q_norm": common.or_none(attn.q_norm), "k_norm": common.or_none(attn.k_norm)}
    if attn.qkv is not None:
        qkv = common.fused_qkv(partial(_fused, attn), attn.num_heads, **norms)
        weights = lambda: common.three(attn.qkv.weight)
        biases = lambda: common.three(_fused_bias(attn))
    else:
        qkv = common.split_qkv(attn.q_proj, attn.k_proj, attn.v_proj, attn.num_heads, **norms)
        weights = lambda: (attn.q_proj.weight, attn.k_proj.weight, attn.v_proj.weight)
        biases = lambda: (attn.q_proj.bias, attn.k_proj.bias, attn.v_proj.bias)
    return AttentionParts(
        n_heads=attn.num_heads,
        d_head=attn.head_dim,
        qkv=qkv,
        qkv_weights=weights,
        qkv_biases=biases,
        out=attn.proj,
        scale=attn.scale,
        rotate=partial(_rotate, attn, layer) if rotary else None,
        inner_norm=common.or_none(attn.norm),
        gate=None if attn.gate is None else (lambda x: attn.gate(x).sigmoid()),
        gamma=gamma,
    )


def _fused_bias(attn: Any) -> Tensor | None:
    """Eva keeps q and v biases beside a projection without bias."""
    if getattr(attn, "q_bias", None) is not None:
        return torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
    return attn.qkv.bias


def _fused(attn: Any, x: Tokens) -> Tensor:
    return F.linear(x, attn.qkv.weight, _fused_bias(attn))


def _rotate(attn: Any, layer: int, q: Tensor, k: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """timm's rotary embedding on the patches, which are the last rows; prefix rows stay."""
    from timm.layers import apply_rot_embed_cat

    own = table[layer] if table.ndim == 4 else table  # 'mixed' tables differ by depth
    half = getattr(attn, "rotate_half", False)

    def turn(heads: Tensor) -> Tensor:
        n_prefix = heads.shape[2] - own.shape[-2]
        turned = apply_rot_embed_cat(heads[:, :, n_prefix:], own, half=half)
        return torch.cat((heads[:, :, :n_prefix], turned), dim=2).type_as(heads)

    return turn(q), turn(k)


def _mlp(mlp: Any, gamma: Callable[[], Tensor] | None) -> MLPParts:
    shared = {
        "act": mlp.act,
        "out": mlp.fc2,
        "inner_norm": common.or_none(mlp.norm),
        "gamma": gamma,
    }
    if common.is_instance(mlp, "timm", "SwiGLU"):
        return MLPParts(
            project=lambda x: (mlp.fc1_g(x), mlp.fc1_x(x)),
            in_weights=common.linear_weights(mlp.fc1_x),
            gate_weights=common.linear_weights(mlp.fc1_g),
            **shared,
        )
    if common.is_instance(mlp, "timm", "GluMlp"):
        gate = 1 if mlp.gate_last else 0
        return MLPParts(
            project=lambda x: _ordered(mlp.fc1(x).chunk(2, dim=-1), gate),
            in_weights=common.packed_weights(mlp.fc1, 1 - gate),
            gate_weights=common.packed_weights(mlp.fc1, gate),
            **shared,
        )
    return MLPParts(
        project=lambda x: (mlp.fc1(x), None), in_weights=common.linear_weights(mlp.fc1), **shared
    )


def _ordered(halves: tuple[Tensor, ...], gate: int) -> tuple[Tensor, Tensor]:
    return halves[gate], halves[1 - gate]


def preprocess(module: Any, image_size: tuple[int, int]) -> Callable[[Any], Tensor]:
    """The evaluation transform of the checkpoint's own configuration."""
    from timm.data import create_transform, resolve_data_config

    config = resolve_data_config({"input_size": (_n_channels(module), *image_size)}, model=module)
    transform: Any = create_transform(**config, is_training=False)
    return transform


def load(request: Request) -> Loaded:
    """A timm model by name.

    Raises:
        UnsupportedModelError: timm knows no model of that name.
        ArtifactError: the local checkpoint is of another architecture.
    """
    import timm
    from timm.models import load_state_dict

    if not timm.is_model(request.name):
        near = timm.list_models(f"*{request.name.split('.')[0][:12]}*")[:5]
        raise UnsupportedModelError(
            f"timm {timm.__version__} has no model {request.name!r}. Near it: {near or 'nothing'}; "
            "timm.list_models() lists all."
        )
    from_hub = not (request.random or request.checkpoint)
    module: Any = timm.create_model(request.name, pretrained=from_hub).eval()
    if request.checkpoint:
        common.load_weights(module, load_state_dict(request.checkpoint), request.checkpoint)
    size = request.image_size or tuple(module.patch_embed.img_size)
    if size != tuple(module.patch_embed.img_size):
        module.set_input_size(img_size=size)
    return Loaded(module, preprocess(module, size))
