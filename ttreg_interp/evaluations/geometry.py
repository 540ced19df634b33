"""Images into a model as dense protocols want them: whole, in the colours of the model's own preprocessing.

A model's preprocessing crops the middle out of an image, which boxes and masks cannot bear.
"""

from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ttreg_interp.errors import DataError
from ttreg_interp.hooked import HookedViT

Fit: TypeAlias = Literal["resize", "pad", "auto"]
"""'resize': the whole image squeezed to the model's size; 'pad': its own size, zeros added up to
whole patches, for models that take any size; 'auto': 'pad' where that is possible."""
Pixels = Float[Tensor, "channel height width"]


@lru_cache(maxsize=2)  # keeps a model alive
def colours(model: HookedViT) -> tuple[Tensor, Tensor]:
    """Factor and offset per channel, [channel, 1, 1], from 0 .. 1 to what the model reads.

    They are read off what its preprocessing makes of a black and a white image, whatever library
    wrote it.

    Raises:
        DataError: a model without preprocessing, or one whose colours are no such line.
    """
    if model.preprocess is None:
        raise DataError(f"{model.cfg.model_name} has no preprocessing. Set model.preprocess.")
    height, width = model.image_size
    black, white = (
        model.preprocess(Image.new("RGB", (width, height), colour)) for colour in ("black", "white")
    )
    offset, whole = black.mean(dim=(1, 2)), white.mean(dim=(1, 2))
    for flat, level in ((black, offset), (white, whole)):
        if not torch.allclose(flat, level[:, None, None].expand_as(flat), atol=1e-4):
            raise DataError(
                f"The preprocessing of {model.cfg.model_name} does more than scale colours: a plain "
                "image does not stay plain."
            )
    return (whole - offset)[:, None, None], offset[:, None, None]


def fitted(model: HookedViT, image: Image.Image, fit: Fit) -> Pixels:
    """A whole image as the model takes it.

    Raises:
        DataError: padding for a model of one image size only.
    """
    from torchvision.transforms.functional import to_tensor

    if fit == "pad" and not model.parts.resizable:
        raise DataError(
            f"{model.cfg.model_name} takes images of {model.image_size} only: fit='resize', or load "
            "it at another image size."
        )
    factor, offset = colours(model)
    if fit == "resize" or not model.parts.resizable:
        height, width = model.image_size
        squeezed = image.resize((width, height), Image.Resampling.BICUBIC)
        return to_tensor(squeezed) * factor + offset
    pixels = to_tensor(image) * factor + offset
    height, width = (
        -(-size // patch) * patch
        for size, patch in zip(pixels.shape[1:], model.parts.patch_size, strict=True)
    )
    return pad(pixels, (0, width - pixels.shape[2], 0, height - pixels.shape[1]))


def seen_size(model: HookedViT, image: Image.Image, fit: Fit) -> tuple[int, int]:
    """Height and width that the image itself, without padding, has in the pixels."""
    if fit == "resize" or not model.parts.resizable:
        return model.image_size
    return image.height, image.width


def cropped_area(
    model: HookedViT, area: Bool[Tensor, "height width"]
) -> Bool[Tensor, "grid_height grid_width"]:
    """Patches that an area touches, after the model's own resizing and cropping."""
    from torchvision.transforms.functional import to_pil_image

    if model.preprocess is None:
        raise DataError(f"{model.cfg.model_name} has no preprocessing. Set model.preprocess.")
    factor, offset = colours(model)
    marked = to_pil_image(area.to(torch.uint8) * 255).convert("RGB")
    share = ((model.preprocess(marked) - offset) / factor).mean(dim=0)
    layout = model.layout()
    grid = interpolate(share[None, None], (layout.height, layout.width), mode="area")
    return grid[0, 0] > 0.01
