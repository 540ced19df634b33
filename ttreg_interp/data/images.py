"""Image files in a fixed order, and full batches of those that can be read."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ttreg_interp.data.decode import read_image
from ttreg_interp.errors import DataError

logger = logging.getLogger("ttreg_interp")

Preprocess = Callable[[Image.Image], Tensor]
"""An RGB image -> pixels [channel, height, width]."""

_KINDS = "avif bmp gif jfif jp2 jpe jpeg jpg pbm pgm png ppm tif tiff webp"
EXTENSIONS = frozenset(f".{kind}" for kind in _KINDS.split())
"""Which files of a folder are taken for images, in any case of letters."""


@dataclass(frozen=True)
class Skipped:
    """An image that a pass left out."""

    path: Path
    """The file."""
    reason: str
    """Why it cannot be read."""

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class ImageBatch:
    """Images that were read and preprocessed."""

    pixels: Float[Tensor, "batch channel height width"]
    """As the preprocessing returned them."""
    paths: tuple[Path, ...]
    """The file of each image."""
    indices: tuple[int, ...]
    """The place of each file in the `paths` of the `ImageFolder`."""


@dataclass(frozen=True)
class ImageFolder:
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

    def batches(
        self, preprocess: Preprocess, batch_size: int = 32, workers: int = 0
    ) -> "ImagePass":
        """A pass over the images; see `ImagePass`.

        Args:
            preprocess: An RGB image -> pixels [channel, height, width], of one size within a batch.
            batch_size: Images of every batch but the last, which may have fewer.
            workers: Processes that read and preprocess; 0 does both in this one. Changes nothing
                else, if `preprocess` draws no random numbers.

        Raises:
            DataError: If `batch_size` is below 1 or `workers` below 0.
        """
        if batch_size < 1 or workers < 0:
            raise DataError(
                f"batch_size={batch_size}, workers={workers}: allowed are batch_size from 1 and "
                "workers from 0."
            )
        return ImagePass(self, preprocess, batch_size, workers)

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


@dataclass(frozen=True)
class ImagePass:
    """Iterating reads the images in order and yields `ImageBatch`es.

    An image that cannot be read is skipped, reported through the logger "ttreg_interp", and put
    down in `skipped`; the next ones take its place in the batch.

    Raises:
        DataError: On iteration, if no image at all can be read, if `preprocess` fails or returns
            something else than float [channel, height, width], or if sizes differ within a batch.
    """

    folder: ImageFolder
    """What is read."""
    preprocess: Preprocess
    """An RGB image -> pixels [channel, height, width]."""
    batch_size: int
    """Images of every batch but the last."""
    workers: int
    """Processes that read and preprocess."""
    skipped: list[Skipped] = field(default_factory=list, init=False, compare=False)
    """What the latest iteration has left out so far."""

    def __iter__(self) -> Iterator[ImageBatch]:
        self.skipped.clear()
        waiting: list[tuple[int, Tensor]] = []
        readable = False
        for index, result in self._results():
            match result:
                case DataError():
                    raise result
                case Skipped():
                    self.skipped.append(result)
                    logger.warning("skipped %s", result)
                case _:
                    waiting.append((index, result))
            if len(waiting) == self.batch_size:
                readable = True
                yield self._batch(waiting)
                waiting = []
        if waiting:
            readable = True
            yield self._batch(waiting)
        self._report(readable)

    def _results(self) -> "Iterator[tuple[int, _Result]]":
        loader = DataLoader(
            _Reader(self.folder.paths, self.preprocess),
            batch_size=self.batch_size,
            num_workers=self.workers,
            collate_fn=list,
            generator=torch.Generator(),  # or the loader would draw from the global one
        )
        for results in loader:
            yield from results

    def _batch(self, waiting: list[tuple[int, Tensor]]) -> ImageBatch:
        paths = tuple(self.folder.paths[index] for index, _ in waiting)
        first = waiting[0][1].shape
        for path, (_, pixels) in zip(paths, waiting, strict=True):
            if pixels.shape != first:
                raise DataError(
                    f"Images of one batch must have one size. {paths[0]} became "
                    f"{tuple(first)} and {path} {tuple(pixels.shape)}. Let the preprocessing crop "
                    "or resize to a fixed size, or take batch_size=1."
                )
        return ImageBatch(torch.stack([p for _, p in waiting]), paths, tuple(i for i, _ in waiting))

    def _report(self, readable: bool) -> None:
        if not readable:
            shown = "".join(f"\n  {one}" for one in self.skipped[:5])
            raise DataError(
                f"None of {len(self.folder)} images can be read:{shown}"
                f"{_and_more(len(self.skipped) - 5)}\nCheck the source that was given."
            )
        if self.skipped:
            logger.warning("skipped %d of %d images", len(self.skipped), len(self.folder))


_Result = Tensor | Skipped | DataError


@dataclass(frozen=True)
class _Reader(Dataset):
    """Reads one image; what goes wrong is returned, so that it is the same from any process."""

    paths: tuple[Path, ...]
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, _Result]:
        path = self.paths[index]
        try:
            image = read_image(path)
        except DataError as reason:
            return index, Skipped(path, str(reason))
        try:
            pixels = self.preprocess(image)
        except Exception as error:
            return index, DataError(f"preprocess failed on {path} {image.size}: {error!r}")
        return index, self._checked(path, pixels)

    def _checked(self, path: Path, pixels: object) -> _Result:
        if isinstance(pixels, Tensor) and pixels.ndim == 3 and pixels.is_floating_point():
            return pixels
        found = (
            f"{pixels.dtype} {tuple(pixels.shape)}"
            if isinstance(pixels, Tensor)
            else type(pixels).__name__
        )
        return DataError(
            f"preprocess returned {found} for {path}. "
            "It must return a float tensor [channel, height, width]."
        )


def images(
    source: Path | str | Sequence[Path | str], limit: int | None = None, seed: int | None = None
) -> ImageFolder:
    """Collect image files; none is read yet.

    Args:
        source: A folder (searched through all its folders, sorted by path, by extension), one
            image file, a sequence of image files, or a `.txt` file with one path a line (relative
            ones start at its folder; empty lines are passed over).
        limit: Take the first that many, or all if there are fewer.
        seed: With `limit`: take a random subset instead, in the same order.

    Returns:
        The files.

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
    folder = _collect(source)
    if limit is None or limit >= len(folder):
        return folder
    if seed is None:
        return ImageFolder(folder.paths[:limit], folder.root)
    order = torch.randperm(len(folder), generator=torch.Generator().manual_seed(seed))
    chosen = sorted(order[:limit].tolist())
    return ImageFolder(tuple(folder.paths[i] for i in chosen), folder.root)


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
            f"{path} does not exist. Give a folder of images, an image file, a list of files, or "
            "a .txt file with one path a line."
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


def _and_more(count: int) -> str:
    return f"\n  and {count} more" if count > 0 else ""
