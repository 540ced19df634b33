"""`images`: one entry for image files, datasets and tars."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

import torch

from ttreg_interp.data.datasets import StreamedImages, is_dataset, open_dataset
from ttreg_interp.data.decode import read_image
from ttreg_interp.data.passes import ImageSet, Unread
from ttreg_interp.errors import DataError

_KINDS = "avif bmp gif jfif jp2 jpe jpeg jpg pbm pgm png ppm tif tiff webp"
EXTENSIONS = frozenset(f".{kind}" for kind in _KINDS.split())
"""Which files of a folder are taken for images, in any case of letters."""


@dataclass(frozen=True)
class ImageFolder(ImageSet):
    """Image files in a fixed order, not yet read. Made by `images`."""

    paths: tuple[Path, ...]
    """The files."""
    root: Path | None = None
    """The folder they were found in; None if they were listed one by one."""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def names(self) -> tuple[str, ...]:
        """The path of each file within `root`, with forward slashes; without root, its name."""
        root = self.root
        return tuple(p.relative_to(root).as_posix() if root else p.name for p in self.paths)

    def unread(self) -> Iterator[Unread]:
        """The files in order."""
        for path in self.paths:
            yield Unread(path, partial(read_image, path))

    def subset(self, places: Sequence[int]) -> "ImageFolder":
        """The files at these places."""
        return ImageFolder(tuple(self.paths[i] for i in places), self.root)

    def digest(self) -> str:
        """SHA-256 of what was given: of the lines `CONTENT_SHA256  NAME`, sorted by name.

        For one folder it equals `find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum` in
        it, where all its files are images. A file that is gone counts with the word absent.

        Returns:
            64 hexadecimal digits. They do not depend on where the files lie or on their order.
        """
        lines = sorted(zip(self.names, map(_content_digest, self.paths), strict=True))
        manifest = "".join(f"{digest}  {name}\n" for name, digest in lines)
        return hashlib.sha256(manifest.encode(errors="surrogateescape")).hexdigest()


@overload
def images(
    source: Path | Sequence[Path | str], limit: int | None = None, seed: int | None = None
) -> ImageFolder: ...


@overload
def images(source: Any, limit: int | None = None, seed: int | None = None) -> Any: ...


def images(source: Any, limit: int | None = None, seed: int | None = None) -> Any:
    """Images in a fixed order; none is read yet.

    | source | images |
    |---|---|
    | a folder | searched through all its folders, sorted by path, by extension |
    | an image file, or a sequence of them | |
    | a `.txt` file | one path a line; relative ones start at its folder |
    | a dataset object | PIL images, or tuples that begin with one: torchvision's, without a transform |
    | a Hugging Face dataset, streamed or not | its column of images |
    | `hf:NAME:SPLIT`, `hf:NAME:CONFIG:SPLIT` | streamed from the Hub, or from a local folder NAME |
    | `part-*.tar`, `part-{000..031}.tar` | WebDataset tars, streamed by `datasets` |

    Args:
        source: One of these.
        limit: Take the first that many, or all if there are fewer.
        seed: With `limit`: take a random subset instead, in the same order. A stream is shuffled
            with this seed, among 1000 images at a time, and its first images are taken.

    Returns:
        The images: an ImageFolder for files.

    Raises:
        DataError: If the source does not exist or holds no image, or `limit` and `seed` do not fit.

    Example:
        >>> images("no/such/folder")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ttreg_interp.errors.DataError: no/such/folder does not exist. Give ...
    """
    if limit is not None and limit < 1:
        raise DataError(f"limit={limit}: allowed are 1 and more, or None for all.")
    if seed is not None and limit is None:
        raise DataError(f"seed={seed} chooses a subset, but no limit says of what size.")
    found = open_dataset(source, limit, seed) if is_dataset(source) else _collect(source)
    if isinstance(found, StreamedImages) or limit is None or limit >= len(found):
        return found
    return found.subset(_places(len(found), limit, seed))


def _places(n_images: int, limit: int, seed: int | None) -> list[int]:
    if seed is None:
        return list(range(limit))
    order = torch.randperm(n_images, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:limit].tolist())


def _collect(source: Path | str | Sequence[Path | str]) -> ImageFolder:
    if not isinstance(source, (str, Path)):
        if not source:
            raise DataError("An empty list of images was given. List at least one file.")
        return ImageFolder(tuple(map(Path, source)))
    path = Path(source)
    if path.is_dir():
        return ImageFolder(_search(path), path)
    if not path.exists():
        raise DataError(
            f"{path} does not exist. Give a folder of images, an image file, a list of files, "
            "a .txt file with one path a line, hf:NAME:SPLIT, or tars."
        )
    return ImageFolder(_listed(path) if path.suffix.lower() == ".txt" else (path,))


def _search(folder: Path) -> tuple[Path, ...]:
    everything = sorted(folder.rglob("*"))
    found = tuple(path for path in everything if path.suffix.lower() in EXTENSIONS)
    if found:
        return found
    others = Counter(path.suffix.lower() or "no extension" for path in everything if path.is_file())
    listing = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
    raise DataError(
        f"{folder} holds no image: {listing or 'it is empty'}. "
        f"Looked for {' '.join(sorted(EXTENSIONS))} in it and all its folders."
    )


def _listed(file: Path) -> tuple[Path, ...]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The list {file} cannot be read as UTF-8 text: {error}.") from error
    paths = tuple(file.parent / line.strip() for line in lines if line.strip())
    if not paths:
        raise DataError(f"The list {file} is empty. Write one image path a line.")
    return paths


def _content_digest(path: Path) -> str:
    try:
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return "absent"
