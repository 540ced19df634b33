"""Tiny random models of every layout that a report draws, and images that come from files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ttreg_interp.hooked import HookedViT

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
KINDS = {
    "[CLS]": {},
    "trained registers": {"reg_tokens": 2},
    "no [CLS]": {"class_token": False, "global_pool": "avg"},
    "non-square": {"img_size": (24, 40)},
}


def tiny(kind: str = "[CLS]", **changes) -> HookedViT:
    torch.manual_seed(0)
    module = VisionTransformer(**{**SIZE, "num_classes": 5, **KINDS[kind], **changes})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model = HookedViT.wrap(module.eval())
    model.spec = f"tiny {kind}"
    return model


def pixels_for(model: HookedViT, n_images: int = 3) -> Tensor:
    return torch.randn(n_images, 3, *model.image_size, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Batch:
    pixels: Tensor
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Files:
    """What `tt.images(...)` returns, as far as recording knows it, without files."""

    pixels: Tensor
    names: tuple[str, ...]

    def batches(self, preprocess, batch_size: int) -> Iterator[Batch]:
        for start in range(0, len(self.names), batch_size):
            part = slice(start, start + batch_size)
            paths = tuple(Path("photos") / name for name in self.names[part])
            yield Batch(self.pixels[part], paths)
