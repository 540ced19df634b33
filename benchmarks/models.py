"""The models that are timed: real transformers ViTs of random weights with planted register neurons."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """One model and one batch."""

    d_model: int
    """Width; the MLP is four times as wide."""
    depth: int
    """Blocks."""
    heads: int
    """Heads a block."""
    patch: int
    """Pixels."""
    pixels: int
    """Height and width of an image."""
    batch: int
    """Images of one forward pass."""


SIZES = {
    "base": Size(768, 12, 12, patch=16, pixels=224, batch=8),
    "long": Size(768, 12, 12, patch=14, pixels=518, batch=1),
    "tiny": Size(192, 12, 3, patch=16, pixels=32, batch=1),
}
"""ViT-B/16; the same width at 1370 tokens; and 5 tokens, where only the fixed cost is left."""

NEURONS = {5: [7, 30, 51], 6: [70]}
"""Neurons that the test-time register of the benchmark moves; their effect does not matter here."""


def source(size: Size, attention: str = "sdpa") -> nn.Module:
    """The plain model, the same weights at each call."""
    import transformers

    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=size.d_model,
        intermediate_size=4 * size.d_model,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        patch_size=size.patch,
        image_size=size.pixels,
        num_labels=10,
        architectures=["ViTForImageClassification"],
        attn_implementation=attention,
    )
    return transformers.ViTForImageClassification(config).eval()


def batch(size: Size) -> Tensor:
    """Noise images."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size.batch, 3, size.pixels, size.pixels, generator=generator)


def with_one_token_more(module: nn.Module) -> nn.Module:
    """The same model run on one zero token more, behind [CLS]: the base of a register."""

    def lengthen(embeddings: nn.Module, args: tuple, x: Tensor) -> Tensor:
        return torch.cat((x[:, :1], torch.zeros_like(x[:, :1]), x[:, 1:]), dim=1)

    module.vit.embeddings.register_forward_hook(lengthen)
    return module
