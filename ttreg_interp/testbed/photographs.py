"""Real photographs that come inside scikit-image and scikit-learn, so that nothing is downloaded.

Only images with a stated licence are used, and each once (scikit-image's `cat` is `chelsea`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from ttreg_interp.errors import DataError


@dataclass(frozen=True)
class Photograph:
    """Where one photograph comes from, and on what terms."""

    package: str
    """The Python package that ships it: "skimage" or "sklearn"."""
    file: str
    """The package's name for it."""
    licence: str
    """Its terms, as that package states them."""
    credit: str
    """Who made it."""


_CC0 = "CC0"
_CC_BY = "CC BY 2.0"
_PUBLIC = "public domain"
_UNRESTRICTED = "no known copyright restrictions"

PHOTOGRAPHS: Mapping[str, Photograph] = MappingProxyType(
    {
        "china": Photograph("sklearn", "china.jpg", _CC_BY, "danielbuechele on Flickr"),
        "flower": Photograph("sklearn", "flower.jpg", _CC_BY, "vultilion on Flickr"),
        "astronaut": Photograph("skimage", "astronaut", _PUBLIC, "NASA"),
        "brick": Photograph("skimage", "brick", _CC0, "CC0Textures, Bricks25"),
        "camera": Photograph("skimage", "camera", _CC0, "Lav Varshney"),
        "cell": Photograph("skimage", "cell", _CC0, "Paul Müller et al., 10.1364/OE.26.010729"),
        "chelsea": Photograph("skimage", "chelsea", _CC0, "Stefan van der Walt"),
        "clock": Photograph("skimage", "clock", _PUBLIC, "Stefan van der Walt"),
        "coffee": Photograph("skimage", "coffee", _CC0, "Rachel Michetti, Pikolo Espresso Bar"),
        "coins": Photograph("skimage", "coins", _UNRESTRICTED, "Brooklyn Museum"),
        "grass": Photograph("skimage", "grass", _CC0, "linolafett on DeviantArt"),
        "gravel": Photograph("skimage", "gravel", _CC0, "CC0Textures, Gravel04"),
        "hubble": Photograph("skimage", "hubble_deep_field", _PUBLIC, "NASA, HubbleSite"),
        "retina": Photograph("skimage", "retina", _CC0, "Mikael Häggström"),
        "rocket": Photograph("skimage", "rocket", _PUBLIC, "SpaceX"),
        "tissue": Photograph(
            "skimage",
            "immunohistochemistry",
            _UNRESTRICTED,
            "Center for Microscopy and Molecular Imaging",
        ),
    }
)
"""Name of each photograph and its origin, in the order in which `photographs` returns them."""


def photographs(size: int = 224) -> dict[str, Image.Image]:
    """The sixteen photographs as RGB images, cropped to their central square and resized.

    Args:
        size: Height and width in pixels.

    Returns:
        The images by name, in the order of `PHOTOGRAPHS`.

    Raises:
        DataError: If `size` is below 1, or scikit-image or scikit-learn is missing.

    Example:
        >>> images = photographs(size=64)
        >>> images["chelsea"].mode, images["chelsea"].size
        ('RGB', (64, 64))
    """
    if size < 1:
        raise DataError(f"Photographs of {size} px were asked for; a size is at least 1 px.")
    read = {"skimage": _skimage_reader(), "sklearn": _sklearn_reader()}
    return {
        name: ImageOps.fit(
            Image.fromarray(read[origin.package](origin.file)).convert("RGB"),
            (size, size),
            Image.Resampling.BICUBIC,
        )
        for name, origin in PHOTOGRAPHS.items()
    }


def photograph_tensor(
    size: int = 224,
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
    std: tuple[float, float, float] = (0.5, 0.5, 0.5),
) -> Float[Tensor, "batch channel height width"]:
    """The photographs as one batch, normalised per channel: (value / 255 - mean) / std.

    Args:
        size: Height and width in pixels.
        mean: Of each channel, on the scale 0 to 1.
        std: Of each channel, on the scale 0 to 1.

    Returns:
        Pixels [16, 3, size, size], in the order of `PHOTOGRAPHS`.

    Raises:
        DataError: As `photographs`.

    Example:
        >>> photograph_tensor(32).shape
        torch.Size([16, 3, 32, 32])
    """
    values = torch.stack([torch.from_numpy(np.array(i)) for i in photographs(size).values()])
    pixels = values.permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def save_photographs(folder: Path | str, size: int = 224) -> list[Path]:
    """Write the photographs as `NAME.png`, to have an image folder; `CREDITS.txt` goes with them.

    Args:
        folder: Made if it does not exist.
        size: Height and width in pixels.

    Returns:
        The image files written, in the order of `PHOTOGRAPHS`.

    Raises:
        DataError: As `photographs`.
    """
    folder = Path(folder)
    images = photographs(size)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.png" for name in images]
    for file, image in zip(files, images.values(), strict=True):
        image.save(file)
    credits = [f"{n}.png: {p.credit} ({p.licence})" for n, p in PHOTOGRAPHS.items()]
    (folder / "CREDITS.txt").write_text("\n".join(credits) + "\n", encoding="utf-8")
    return files


def _skimage_reader() -> Callable[[str], np.ndarray]:
    try:
        from skimage import data
    except ModuleNotFoundError as missing:
        raise _not_installed("scikit-image") from missing
    return lambda name: getattr(data, name)()


def _sklearn_reader() -> Callable[[str], np.ndarray]:
    try:
        from sklearn.datasets import load_sample_image
    except ModuleNotFoundError as missing:
        raise _not_installed("scikit-learn") from missing
    return load_sample_image


def _not_installed(package: str) -> DataError:
    return DataError(
        f"The photographs come inside {package}, which is not installed. "
        "Install it with: pip install 'ttreg-interp[demo]'"
    )
