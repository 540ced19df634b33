"""One image file to one 8-bit RGB image, whatever its kind; or the reason why not."""

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ttreg_interp.errors import DataError

_SIXTEEN_BIT_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_WHITE_16_BIT = 65535


def read_image(path: Path | str) -> Image.Image:
    """Read an image file as 8-bit RGB, upright.

    EXIF orientation is applied; transparency is composited on white; 16-bit grey is scaled to 8
    bits (and not clipped); grey, palette and CMYK images are converted; of an animation or a
    multi-page file the first image is taken. Colour profiles are ignored.

    Args:
        path: Of the file.

    Returns:
        An RGB image.

    Raises:
        DataError: If there is no readable image; the message is the reason, without the path.

    Example:
        >>> read_image("no/such/photo.jpg")
        Traceback (most recent call last):
        ...
        ttreg_interp.errors.DataError: no such file
    """
    path = Path(path)
    if path.is_dir():
        raise DataError("a folder, not a file")
    if not path.exists():
        raise DataError("no such file")
    if path.stat().st_size == 0:
        raise DataError("an empty file (0 bytes)")
    return _decoded(path)


def decode_image(content: bytes) -> Image.Image:
    """The same of a file's content.

    Raises:
        DataError: If there is no readable image; the message is the reason.
    """
    if not content:
        raise DataError("an empty file (0 bytes)")
    return _decoded(BytesIO(content))


def _decoded(file: Path | BytesIO) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Of damaged metadata; what matters of it, the orientation, is read or raises.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                image.load()
                return upright_rgb(image)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError("no known image format") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"more than {Image.MAX_IMAGE_PIXELS} pixels, the limit of PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except Exception as error:  # of damaged files, decoders raise anything
        raise DataError(f"cannot be decoded: {error} ({type(error).__name__})") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """A loaded image as `read_image` gives it."""
    return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT_MODES:
        return _from_16_bit(image)
    if image.mode == "F":
        raise DataError("floating-point values have no agreed white; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > _WHITE_16_BIT:
        raise DataError(
            f"32-bit values ({values.min()} to {values.max()}) have no agreed white; "
            "save it with 8 or 16 bits"
        )
    grey = np.round(values * (255 / _WHITE_16_BIT)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
