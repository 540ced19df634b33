"""Sets of images in a fixed order, and full batches of those that can be read."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ttreg_interp.errors import DataError

logger = logging.getLogger("ttreg_interp")

Preprocess = Callable[[Image.Image], Tensor]
"""An RGB image -> pixels [channel, height, width]."""

AT_ONCE = 512
"""Images that one set of worker processes is given."""


@dataclass(frozen=True)
class Unread:
    """One image of a set."""

    path: Path
    """Its file; or what stands for one, such as its key in a tar."""
    read: Callable[[], Image.Image]
    """Reads it as RGB; raises DataError with the reason if that cannot be."""


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
    """The file of each image, or what stands for one."""
    indices: tuple[int, ...]
    """The place of each image in the set."""


class ImageSet(ABC):
    """Images in a fixed order, not yet read. Made by `images`."""

    @abstractmethod
    def __len__(self) -> int:
        """Images in all, also those that cannot be read."""

    @abstractmethod
    def unread(self) -> Iterator[Unread]:
        """The images in order."""

    @abstractmethod
    def digest(self) -> str:
        """What identifies the set: 64 hexadecimal digits."""

    def batches(
        self,
        preprocess: Preprocess,
        batch_size: int = 32,
        workers: int = 0,
        wanted: Callable[[int], bool] | None = None,
    ) -> "ImagePass":
        """A pass over the images; see `ImagePass`.

        Args:
            preprocess: An RGB image -> pixels [channel, height, width], of one size within a batch.
            batch_size: Images of every batch but the last, which may have fewer.
            workers: Processes that read and preprocess; 0 does both in this one. Changes nothing
                else, if `preprocess` draws no random numbers.
            wanted: Whether the image at a place of the set is read; the others are not opened.
                None: all.

        Raises:
            DataError: If `batch_size` is below 1 or `workers` below 0.
        """
        if batch_size < 1 or workers < 0:
            raise DataError(
                f"batch_size={batch_size}, workers={workers}: allowed are batch_size from 1 and "
                "workers from 0."
            )
        return ImagePass(self, preprocess, batch_size, workers, wanted)


_Result = Tensor | Skipped | DataError
ReadImage = tuple[int, Path, Tensor]
"""Place in the set, file and pixels."""


@dataclass(frozen=True)
class ImagePass:
    """Iterating reads the images in order and yields `ImageBatch`es.

    An image that cannot be read is skipped, reported through the logger "ttreg_interp", and put
    down in `skipped`; the next ones take its place in the batch.

    Raises:
        DataError: On iteration, if no image at all can be read, if `preprocess` fails or returns
            something else than float [channel, height, width], or if sizes differ within a batch.
    """

    source: ImageSet
    """What is read."""
    preprocess: Preprocess
    """An RGB image -> pixels [channel, height, width]."""
    batch_size: int
    """Images of every batch but the last."""
    workers: int
    """Processes that read and preprocess."""
    wanted: Callable[[int], bool] | None = None
    """Whether the image at a place of the set is read; None: all are."""
    skipped: list[Skipped] = field(default_factory=list, init=False, compare=False)
    """What the latest iteration has left out so far."""

    def __iter__(self) -> Iterator[ImageBatch]:
        waiting: list[ReadImage] = []
        readable = False
        for image in self.images():
            readable = True
            waiting.append(image)
            if len(waiting) == self.batch_size:
                yield _batch(waiting)
                waiting = []
        if waiting:
            yield _batch(waiting)
        if not readable:
            raise self._unreadable()

    def images(self) -> Iterator[ReadImage]:
        """Place, file and pixels of each image that can be read, one by one; maybe of none.

        Raises:
            DataError: On iteration, if `preprocess` fails or returns something else than float
                [channel, height, width].
        """
        self.skipped.clear()
        n_images = 0
        for place, path, result in self._results():
            n_images += 1
            match result:
                case DataError():
                    raise result
                case Skipped():
                    self.skipped.append(result)
                    logger.warning("skipped %s", result)
                case _:
                    yield place, path, result
        if 0 < len(self.skipped) < n_images:
            logger.warning("skipped %d of %d images", len(self.skipped), n_images)

    def _results(self) -> Iterator[tuple[int, Path, _Result]]:
        """Of every image that is wanted; streams are handed to the workers in parts."""
        unread = enumerate(self.source.unread())
        wanted = (one for one in unread if self.wanted is None or self.wanted(one[0]))
        while part := list(islice(wanted, AT_ONCE)):
            loader = DataLoader(
                _Reader([one for _, one in part], self.preprocess),
                batch_size=self.batch_size,
                num_workers=self.workers,
                collate_fn=list,
                generator=torch.Generator(),  # or the loader would draw from the global one
            )
            results = chain.from_iterable(loader)
            for (place, _), (path, result) in zip(part, results, strict=True):
                yield place, path, result

    def _unreadable(self) -> DataError:
        shown = "".join(f"\n  {one}" for one in self.skipped[:5])
        if len(self.skipped) > 5:
            shown += f"\n  and {len(self.skipped) - 5} more"
        return DataError(
            f"None of {len(self.skipped)} images can be read:{shown}\nCheck the source that was "
            "given."
        )


def _batch(waiting: list[ReadImage]) -> ImageBatch:
    indices, paths, pixels = zip(*waiting, strict=True)
    for path, image in zip(paths, pixels, strict=True):
        if image.shape != pixels[0].shape:
            raise DataError(
                f"Images of one batch must have one size. {paths[0]} became "
                f"{tuple(pixels[0].shape)} and {path} {tuple(image.shape)}. Let the preprocessing "
                "crop or resize to a fixed size, or take batch_size=1."
            )
    return ImageBatch(torch.stack(pixels), paths, indices)


@dataclass(frozen=True)
class _Reader(Dataset):
    """Reads one image; what goes wrong is returned, so that it is the same from any process."""

    images: Sequence[Unread]
    preprocess: Preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: int) -> tuple[Path, _Result]:
        path = self.images[place].path
        try:
            image = self.images[place].read()
        except DataError as reason:
            return path, Skipped(path, str(reason))
        try:
            pixels = self.preprocess(image)
        except Exception as error:
            return path, DataError(f"preprocess failed on {path} {image.size}: {error!r}")
        return path, _checked(path, pixels)


def _checked(path: Path, pixels: object) -> _Result:
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
