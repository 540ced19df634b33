"""A small model of every kind that evaluations take, and images with annotations made up for it."""

from functools import partial
from pathlib import Path

import torch
from PIL import Image

from ttreg_interp.data.annotated import Annotated, Attack, Depth, Item, Mask, Objects
from ttreg_interp.hooked import HookedViT

SIZE = 32
CLASSES = ("ash", "birch", "cedar")


def classifier(**options) -> HookedViT:
    """A ViT of two blocks, 4 x 4 patches, three classes."""
    from timm.models import VisionTransformer

    torch.manual_seed(0)
    shape = {"img_size": SIZE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model = HookedViT.wrap(VisionTransformer(**{**shape, "num_classes": 3, **options}))
    with torch.no_grad():
        for parameter in model.source.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        model.eval()
        if model.parts.is_classifier:  # or it would give all images one class
            images = torch.stack([model.preprocess(photograph(i)) for i in range(20, 40)])
            model.source.head.bias -= model(images).mean(dim=0)
    return model


def photograph(number: int, size: tuple[int, int] = (40, 48)) -> Image.Image:
    generator = torch.Generator().manual_seed(number)
    coarse = torch.rand(3, 5, 6, generator=generator)
    fine = torch.nn.functional.interpolate(coarse[None], size, mode="bilinear")[0]
    return Image.fromarray((fine * 255).to(torch.uint8).permute(1, 2, 0).numpy())


def _target(kind: type, number: int, size: tuple[int, int]):
    generator = torch.Generator().manual_seed(100 + number)
    height, width = size
    if kind is int:
        return number % 3
    if kind is Objects:
        x, y = (torch.rand(2, generator=generator) * torch.tensor([width / 2, height / 2])).tolist()
        return Objects(torch.tensor([[x, y, x + width / 2, y + height / 2], [0, 0, 4, 4]]))
    if kind is Mask:
        ids = torch.zeros(size, dtype=torch.long)
        ids[height // 4 :, : width // 2] = 1 + number % 2
        ids[0, 0] = 255
        return Mask(ids, 255)
    if kind is Depth:
        return Depth(1 + 8 * torch.rand(size, generator=generator))
    area = torch.zeros(size, dtype=torch.bool)
    area[10:20, 12:30] = True
    return Attack(CLASSES[number % 3], CLASSES[(number + 1) % 3], area)


def images_of(kind: type, count: int = 7, **options) -> Annotated:
    items = tuple(
        Item(
            f"image {number}",
            Path(f"{number}.png"),
            partial(photograph, number, **options),
            partial(_target, kind, number),
        )
        for number in range(count)
    )
    return Annotated(f"made up: {kind.__name__}", kind, items, classes=CLASSES)
