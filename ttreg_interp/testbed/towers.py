"""Standard image towers of timm and open_clip, and one view of their weights for both."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ttreg_interp.errors import UnsupportedModelError


@dataclass(frozen=True)
class Shape:
    """The sizes that fix a standard ViT."""

    width: int
    """d_model."""
    depth: int
    """Blocks."""
    heads: int
    """Attention heads of one layer."""
    image_size: int
    """Height and width of `pixels`."""
    patch_size: int
    """Height and width of one patch, in pixels."""

    @property
    def patches(self) -> int:
        """Patch tokens of one image."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class Block:
    """The weights of one transformer block by role: the module's own, never copies."""

    qkv_weight: Tensor
    """[3 * d_model, d_model]: rows of all queries, all keys, all values; head after head in each."""
    qkv_bias: Tensor
    """[3 * d_model]: the bias of the same rows."""
    attention_out: nn.Linear
    """Heads to residual stream."""
    mlp_in: nn.Linear
    """Residual stream to neurons."""
    mlp_out: nn.Linear
    """Neurons to residual stream."""


@dataclass(frozen=True)
class Tower:
    """A pre-norm ViT with [CLS] and learned position embeddings, its weights by role."""

    module: nn.Module
    """The tower itself."""
    heads: int
    """Attention heads of one layer."""
    patch: nn.Conv2d
    """Patch embedding."""
    position: Float[Tensor, "token d_model"]
    """Position embeddings; row 0 is that of [CLS]."""
    cls: Float[Tensor, " d_model"]
    """The [CLS] embedding."""
    blocks: tuple[Block, ...]
    """The blocks in order."""

    @property
    def d_model(self) -> int:
        return self.cls.shape[0]

    @property
    def d_head(self) -> int:
        return self.d_model // self.heads

    @property
    def neurons(self) -> int:
        """Neurons of one layer."""
        return self.blocks[0].mlp_in.out_features

    @property
    def norms(self) -> Iterator[nn.LayerNorm]:
        """Every norm, inside the blocks and outside."""
        return (part for part in self.module.modules() if isinstance(part, nn.LayerNorm))


def build(family: str, shape: Shape) -> nn.Module:
    """A standard ViT without classifier: its forward returns the normed (and projected) [CLS]."""
    return FAMILIES[family].build(shape)


def read(family: str, module: nn.Module, shape: Shape) -> Tower:
    """The weights of a standard ViT by role.

    Raises:
        UnsupportedModelError: If the parameters of the module, its last map aside, are not those
            of the standard ViT of this family and shape.
    """
    with torch.device("meta"):
        expected = _parameters(build(family, shape))
    found = _parameters(module)
    differing = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    if differing:
        name = differing[0]
        raise UnsupportedModelError(
            f"{type(module).__name__} is not the standard {family} VisionTransformer of {shape}: "
            f"{len(differing)} parameters differ, first {name!r} with shape "
            f"{found.get(name, 'missing')} where {expected.get(name, 'none')} is expected. "
            "Pass the image tower itself (of an open_clip model, its `.visual`) and a "
            "configuration with its sizes."
        )
    return FAMILIES[family].read(module)


def _parameters(module: nn.Module) -> dict[str, tuple[int, ...]]:
    last_map = ("head.", "proj")
    return {
        name: tuple(value.shape)
        for name, value in module.named_parameters()
        if not name.startswith(last_map)
    }


def _build_timm(shape: Shape) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=shape.image_size,
        patch_size=shape.patch_size,
        embed_dim=shape.width,
        depth=shape.depth,
        num_heads=shape.heads,
        num_classes=0,
        weight_init="skip",  # its draws would all be overwritten
    )


def _build_open_clip(shape: Shape) -> nn.Module:
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(
        image_size=shape.image_size,
        patch_size=shape.patch_size,
        width=shape.width,
        layers=shape.depth,
        heads=shape.heads,
        mlp_ratio=4.0,
        output_dim=shape.width,
    )


def _read_timm(module: Any) -> Tower:
    blocks = tuple(
        Block(b.attn.qkv.weight, b.attn.qkv.bias, b.attn.proj, b.mlp.fc1, b.mlp.fc2)
        for b in module.blocks
    )
    return Tower(
        module=module,
        heads=module.blocks[0].attn.num_heads,
        patch=module.patch_embed.proj,
        position=module.pos_embed[0],
        cls=module.cls_token[0, 0],
        blocks=blocks,
    )


def _read_open_clip(module: Any) -> Tower:
    blocks = tuple(
        Block(b.attn.in_proj_weight, b.attn.in_proj_bias, b.attn.out_proj, b.mlp.c_fc, b.mlp.c_proj)
        for b in module.transformer.resblocks
    )
    return Tower(
        module=module,
        heads=module.transformer.resblocks[0].attn.num_heads,
        patch=module.conv1,
        position=module.positional_embedding,
        cls=module.class_embedding,
        blocks=blocks,
    )


@dataclass(frozen=True)
class _Family:
    build: Callable[[Shape], nn.Module]
    read: Callable[[Any], Tower]


FAMILIES: Mapping[str, _Family] = MappingProxyType(
    {
        "timm": _Family(_build_timm, _read_timm),
        "open_clip": _Family(_build_open_clip, _read_open_clip),
    }
)
"""Whose `VisionTransformer` a tower may be."""
