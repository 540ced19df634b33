"""The images as the model sees them: preprocessing undone, so that maps lie exactly on them."""

import base64
import io
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

LONGEST_SIDE = 256
"""Of a thumbnail, in pixels."""


def thumbnails(
    pixels: Float[Tensor, "batch channel height width"],
    preprocess: Callable[[Any], Tensor] | None,
) -> UInt8[Tensor, "batch small_height small_width 3"]:
    """Preprocessed pixels as pictures, at most `LONGEST_SIDE` pixels long.

    Preprocessing ends in an affine map per channel, whatever library made it; what it makes of a
    black and of a white image tells which. Without `preprocess`, each channel's own range is used.

    Args:
        pixels: what the model read.
        preprocess: PIL image -> [channel, height, width].
    """
    pixels = pixels.detach().float().cpu()
    black, white = _range(pixels, preprocess)
    pictures = ((pixels - black) / (white - black).clamp(min=1e-6)).clamp(0, 1)
    if pictures.shape[1] != 3:
        pictures = pictures[:, :1].expand(-1, 3, -1, -1)
    shrink = min(1.0, LONGEST_SIDE / max(pictures.shape[-2:]))
    size = [max(1, round(side * shrink)) for side in pictures.shape[-2:]]
    small = interpolate(pictures, size=size, mode="bilinear", antialias=True)
    return (small.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def data_uri(picture: UInt8[Tensor, "height width 3"]) -> str:
    """The picture inside an address, for pages that fetch nothing."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture.numpy()).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _range(
    pixels: Float[Tensor, "batch channel height width"],
    preprocess: Callable[[Any], Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """What black and white are, per channel, [channel, 1, 1]."""
    if preprocess is None:
        return pixels.amin((0, 2, 3))[:, None, None], pixels.amax((0, 2, 3))[:, None, None]
    from PIL import Image

    size = (pixels.shape[-1], pixels.shape[-2])
    black, white = (
        preprocess(Image.new("RGB", size, colour)).float().mean((1, 2))[:, None, None]
        for colour in ((0, 0, 0), (255, 255, 255))
    )
    return black, white
