"""transformers: from pixels to tokens, the trunk of each vision transformer.

A trunk is all of a ViTParts but the readout. Position embeddings of another image size come from
the source's own interpolation, which leaves the native size untouched, bit for bit.
"""

from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.hooked.parts import Pixels, Tokens, ViTParts
from ttreg_interp.hooked.sources import _transformers_blocks as blocks
from ttreg_interp.hooked.sources import common

Size = tuple[int, int]
Trunk = partial[ViTParts]


def vit(base: Any) -> Trunk:
    """ViT and DeiT; DeiT always has a distillation token beside [CLS]."""
    embeddings = base.embeddings
    size, patch = pair(embeddings.image_size), pair(embeddings.patch_size)
    projection = embeddings.patch_embeddings.projection
    return partial(
        ViTParts,
        embed=lambda pixels: (
            embeddings(
                pixels.to(projection.weight.dtype),
                interpolate_pos_encoding=is_other(pixels, size),
            ),
            None,
        ),
        blocks=tuple(blocks.vit(layer) for layer in base.layers),
        ln_final=base.layernorm,
        n_cls=2 if common.is_instance(base, "transformers", "DeiTModel") else 1,
        image_size=size,
        patch_size=patch,
        # The source interpolates square grids of square patches only.
        resizable=isinstance(embeddings.patch_size, int) and _is_square(size, patch),
        n_channels=base.config.num_channels,
    )


def clip(base: Any, **norms: Any) -> Trunk:
    """CLIP and SigLIP: the same embedding and blocks; where the norms stand differs."""
    embeddings = base.embeddings
    size = pair(embeddings.image_size)
    return partial(
        ViTParts,
        embed=lambda pixels: (
            embeddings(pixels, interpolate_pos_encoding=is_other(pixels, size)),
            None,
        ),
        blocks=tuple(blocks.clip(layer) for layer in base.encoder.layers),
        image_size=size,
        patch_size=pair(embeddings.patch_size),
        resizable=True,
        n_channels=base.config.num_channels,
        **norms,
    )


def siglip2(base: Any) -> Trunk:
    """SigLIP 2 with patches of any number (NaFlex), on whole images without padding."""
    embeddings, patch = base.embeddings, base.embeddings.patch_size
    side = embeddings.position_embedding_size
    n_patches = embeddings.num_patches
    _require_square(base, side * side == n_patches, f"{n_patches} patches")
    return partial(
        ViTParts,
        embed=lambda pixels: (embeddings(patchify(pixels, patch), grids(pixels, patch)), None),
        blocks=tuple(blocks.clip(layer) for layer in base.encoder.layers),
        ln_final=base.post_layernorm,
        n_cls=0,
        image_size=(side * patch, side * patch),
        patch_size=(patch, patch),
        resizable=True,
        n_channels=base.config.num_channels,
    )


def patchify(pixels: Pixels, patch: int) -> Tensor:
    """Images as the rows that SigLIP 2 reads: [batch, patch, height * width * channel of a patch]."""
    return rearrange(
        pixels,
        "batch channel (row height) (column width) -> batch (row column) (height width channel)",
        height=patch,
        width=patch,
    )


def grids(pixels: Pixels, patch: int) -> Tensor:
    """The patch grid of every image, [batch, 2]; on the CPU, where the source reads it."""
    return torch.tensor([[side // patch for side in pixels.shape[-2:]]] * len(pixels))


def dinov2(base: Any) -> Trunk:
    """DINOv2, with trained registers or without."""
    embeddings = base.embeddings
    size = pair(embeddings.patch_embeddings.image_size)
    patch = pair(embeddings.patch_embeddings.patch_size)
    _require_square(base, _is_square(size, patch), _grid(size, patch))
    with_registers = common.is_instance(base, "transformers", "Dinov2WithRegistersModel")
    return partial(
        ViTParts,
        embed=lambda pixels: (embeddings(pixels), None),
        blocks=tuple(blocks.dinov2(layer) for layer in base.encoder.layer),
        ln_final=base.layernorm,
        n_trained_registers=base.config.num_register_tokens if with_registers else 0,
        image_size=size,
        patch_size=patch,
        resizable=True,
        n_channels=base.config.num_channels,
    )


def dinov3(base: Any) -> Trunk:
    """DINOv3: no position embedding, rotation of the patches instead."""
    embeddings = base.embeddings

    def embed(pixels: Pixels) -> tuple[Tokens, tuple[Tensor, Tensor]]:
        pixels = pixels.to(embeddings.patch_embeddings.weight.dtype)  # the rotation's dtype too
        return embeddings(pixels), base.rope_embeddings(pixels)

    return partial(
        ViTParts,
        embed=embed,
        blocks=tuple(blocks.dinov3(layer) for layer in base.model.layer),
        ln_final=base.norm,
        n_trained_registers=base.config.num_register_tokens,
        image_size=pair(base.config.image_size),
        patch_size=pair(base.config.patch_size),
        resizable=True,
        n_channels=base.config.num_channels,
    )


def internvl(base: Any) -> Trunk:
    """InternVL's vision tower."""
    embeddings = base.embeddings
    size, patch = pair(embeddings.image_size), pair(embeddings.patch_size)
    if embeddings.position_embeddings is not None:
        _require_square(base, _is_square(size, patch), _grid(size, patch))
    return partial(
        ViTParts,
        embed=lambda pixels: (embeddings(pixels), None),
        blocks=tuple(blocks.internvl(layer) for layer in base.encoder.layer),
        ln_final=common.or_none(base.layernorm),
        image_size=size,
        patch_size=patch,
        resizable=True,
        n_channels=base.config.num_channels,
    )


def pair(size: Any) -> Size:
    """Height and width, from one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def is_other(pixels: Pixels, size: Size) -> bool:
    """Whether `pixels` have another height or width than `size`."""
    return tuple(pixels.shape[-2:]) != size


def _is_square(size: Size, patch: Size) -> bool:
    return size[0] // patch[0] == size[1] // patch[1]


def _grid(size: Size, patch: Size) -> str:
    return f"{size[0] // patch[0]} x {size[1] // patch[1]} patches"


def _require_square(module: nn.Module, square: bool, positions: str) -> None:
    """Refuse position embeddings that the source itself gets wrong.

    Raises:
        UnsupportedModelError: they are no square grid.
    """
    if not square:
        raise UnsupportedModelError(
            f"{common.class_name(module)}: its position embedding holds {positions}, and "
            "transformers reads every such embedding as a square grid, so that its own forward "
            "fails or puts patches in wrong places. Build the model with a square image_size; "
            "images of other shapes are fine then."
        )
