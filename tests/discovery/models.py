"""Small ViTs whose outliers are known: neurons that read a mark on some positions and push there."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ttreg_interp.hooked import HookedViT

WIDTH, GRID = 64, 4
ORDINARY = 16  # dimensions from here on carry the content


@dataclass(frozen=True)
class Push:
    """One register neuron: at some patches it fires and writes along its own direction."""

    layer: int
    neuron: int
    places: tuple[int, ...]
    """Patches, in raster order."""
    mark: int = 0
    """Which mark on those patches it reads."""
    along: int = 0
    """Which direction it writes along."""
    size: float = 200.0
    """Norm that it writes; the tokens' own norm is about 7."""
    sign: float = 1.0
    """Of the direction."""


def marked_vit(
    *pushes: Push,
    class_token: bool = True,
    depth: int = 4,
    seed: int = 0,
    size: tuple[int, int] = (64, 64),
    **kwargs,
) -> nn.Module:
    """A random timm ViT (64 px, 16 patches) in which only the pushes make outliers."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(seed)
    vit = VisionTransformer(
        img_size=size,
        patch_size=16,
        embed_dim=WIDTH,
        depth=depth,
        num_heads=4,
        num_classes=0,
        class_token=class_token,
        global_pool="token" if class_token else "avg",
        **kwargs,
    ).eval()
    with torch.no_grad():
        _randomise(vit)
        for push in pushes:
            _add(vit, push, class_token)
    return vit


def _randomise(vit: nn.Module) -> None:
    vit.pos_embed.normal_()
    vit.pos_embed[..., :ORDINARY] = 0
    vit.patch_embed.proj.weight.mul_(3)
    vit.patch_embed.proj.weight[:ORDINARY] = 0
    for block in vit.blocks:
        for linear in (block.attn.proj, block.mlp.fc2):
            linear.weight.normal_(std=0.05)
            linear.weight[:ORDINARY] = 0
            linear.bias.zero_()
    if vit.cls_token is not None:
        vit.cls_token.normal_()
        vit.cls_token[..., :ORDINARY] = 0


def _add(vit: nn.Module, push: Push, class_token: bool) -> None:
    mlp = vit.blocks[push.layer].mlp
    vit.pos_embed[0, [place + class_token for place in push.places], push.mark] = 6
    read(mlp, push.neuron, push.mark)
    mlp.fc2.weight[:, push.neuron] = push.sign * push.size / FIRING * direction(push.along)


FIRING = 30.0
"""About the activation of a neuron that reads a mark."""


def read(mlp: nn.Module, neuron: int, mark: int, bias: float = -8.0) -> None:
    """Let a neuron fire where there is a mark."""
    mlp.fc1.weight[neuron] = 0
    mlp.fc1.weight[neuron, mark] = 10
    mlp.fc1.bias[neuron] = bias


def direction(which: int) -> Tensor:
    """A unit vector whose entries sum to zero, so that LayerNorm's mean leaves it alone."""
    unit = torch.zeros(WIDTH)
    unit[4 + 2 * which], unit[5 + 2 * which] = 0.5**0.5, -(0.5**0.5)
    return unit


def hooked(vit: nn.Module) -> HookedViT:
    return HookedViT.wrap(vit)


def noise_images(n: int = 16, seed: int = 0, size: tuple[int, int] = (64, 64)) -> Tensor:
    return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def erase(vit: nn.Module, layer: int, along: int, size: float) -> nn.Module:
    """Let a neuron of a late layer take back what was pushed, as the last block of some models does."""
    mlp = vit.blocks[layer].mlp
    mlp.fc1.weight[60] = 8 * direction(along)
    mlp.fc1.bias[60] = -16
    mlp.fc2.weight[:, 60] = -size / 48 * direction(along)  # LayerNorm shows the push as sqrt(WIDTH)
    return vit
