"""Uploads: one image of a bounded size, or the reason why not."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ttreg_interp.data.decode import read_image
from ttreg_interp.errors import DataError

MAX_MEGABYTES = 20
MAX_MEGAPIXELS = 50
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture, and where it came from."""

    image: Image.Image
    """8-bit RGB, upright."""
    name: str
    """File name, or name of an embedded photograph."""
    embedded: bool = False
    """Whether it is an embedded photograph."""

    def python(self) -> str:
        """A Python expression that reads it; a name that would run as code stays a string."""
        return f"photographs()[{self.name!r}]" if self.embedded else f"read_image({self.name!r})"


def read_upload(path: Path | str) -> Image.Image:
    """The picture of an uploaded file, as 8-bit RGB, upright.

    Args:
        path: where the file lies; its name is the sender's and is not trusted.

    Raises:
        DataError: another type, too large, or no readable image; says what is allowed.
    """
    path = Path(path)
    allowed = f"Allowed are images up to {MAX_MEGABYTES} MB and {MAX_MEGAPIXELS} megapixels."
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"A file {path.suffix or 'without suffix'} is no image. {allowed}")
    if path.is_file() and path.stat().st_size > MAX_MEGABYTES * 1_000_000:
        found = path.stat().st_size / 1_000_000
        raise DataError(f"This file has {found:.1f} MB. {allowed}")
    _check_pixels(path, allowed)
    try:
        return read_image(path)
    except DataError as error:
        raise DataError(f"This file cannot be shown: {error}. {allowed}") from None


def _check_pixels(path: Path, allowed: str) -> None:
    """Refuse by what the file's head says, before anything is decoded."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise DataError(f"This image has far too many pixels. {allowed}") from None
    except Exception:  # read_image says what is wrong with it
        return
    if width * height > MAX_MEGAPIXELS * 1_000_000:
        raise DataError(f"This image has {width} x {height} pixels. {allowed}")
