"""Images in, whatever they come as: numbered batches of pixels, the same on every pass."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ttreg_interp.data.passes import ImageSet
from ttreg_interp.errors import DataError


@runtime_checkable
class ImageSource(Protocol):
    """A set of images that decodes itself, as `tt.images(...)`."""

    def batches(self, preprocess: Any, batch_size: int, workers: int) -> Iterable[Any]:
        """Batches with `.pixels`, [batch, channel, height, width]."""
        ...

    def digest(self) -> str:
        """What identifies the set."""
        ...


@dataclass(frozen=True)
class Batch:
    """Pixels of one forward pass."""

    pixels: Float[Tensor, "batch channel height width"]
    """The images, preprocessed."""
    index: Int[Tensor, " batch"]
    """Place of each image in the whole set."""
    number: int = 0
    """Of this batch, among those of its part of the set."""

    def __len__(self) -> int:
        return len(self.index)

    def only(self, keep: Tensor) -> "Batch":
        """The images at which `keep` is true."""
        return Batch(self.pixels[keep], self.index[keep], self.number)


@dataclass(frozen=True)
class Part:
    """Images of a set that are told by their places alone: all, every n-th, or all but every n-th.

    Example:
        >>> scored, held_out = Part.split(0.25)
        >>> [place for place in range(9) if held_out.holds(place)]
        [3, 7]
        >>> [scored.rank(place) for place in (0, 2, 4, 8)]
        [0, 2, 3, 6]
    """

    period: int | None = None
    """n; None: the part is the whole set, or where `nth` nothing."""
    nth: bool = False
    """Whether these are every n-th images, and not the others."""

    @classmethod
    def split(cls, share: float) -> "tuple[Part, Part]":
        """What is left, and what is held out: every n-th image of the set, n = 1 / share."""
        period = max(2, round(1 / share)) if share else None
        return cls(period), cls(period, nth=True)

    def holds(self, place: int) -> bool:
        """Whether the image at that place of the set belongs here."""
        every = self.period is not None and place % self.period == self.period - 1
        return every == self.nth

    def rank(self, place: int) -> int:
        """How many images of this part lie before that place."""
        before = 0 if self.period is None else place // self.period
        return before if self.nth else place - before


WHOLE = Part()
"""All images of a set."""


def _any(number: int) -> bool:
    return True


@dataclass(frozen=True)
class ImageStream:
    """Numbered batches of pixels from a tensor, an image source, or an iterable of pixel batches."""

    images: Any
    """A tensor [image, channel, height, width], an ImageSource, or an iterable of tensors (or of
    tuples that begin with one, as a DataLoader gives) that can be run through more than once."""
    preprocess: Any = None
    """PIL image -> pixels, for an ImageSource."""
    batch_size: int = 8
    """Images of one batch; an iterable of batches has its own."""
    workers: int = 0
    """Processes that decode."""
    device: torch.device = torch.device("cpu")
    """Where the pixels go."""
    dtype: torch.dtype = torch.float32
    """Of the pixels."""

    @classmethod
    def for_model(cls, model: Any, images: Any, batch_size: int, workers: int) -> "ImageStream":
        """The images as `model` wants them.

        Raises:
            DataError: an iterator, which a second pass would find empty; or image files for a model
                without preprocessing.
        """
        if isinstance(images, Iterator):
            raise DataError(
                f"Images are read more than once; found the iterator {type(images).__name__}, which "
                "is empty after one pass. Give a list, a Dataset, or tt.images(...)."
            )
        if isinstance(images, ImageSource) and model.preprocess is None:
            raise DataError(
                f"{model.cfg.model_name} does not know how its images are preprocessed. Set "
                "model.preprocess, or give pixels."
            )
        cfg = model.cfg
        return cls(images, model.preprocess, batch_size, workers, cfg.device, cfg.dtype)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def batches(self, part: Part = WHOLE, takes: Callable[[int], bool] = _any) -> Iterator[Batch]:
        """Batches of a part of the images; of those that are not taken, nothing is read.

        Which images make up a batch follows from their places alone. So no batch depends on which
        others are taken, and an image that cannot be read leaves a gap in its own. (Pixels that come
        in batches keep these, and have to be gone through.)

        Args:
            part: which images.
            takes: which batches, by number.
        """
        size: torch.Size | None = None
        for batch in self._batches(part, takes):
            size = _same_size(batch.pixels, size)
            pixels = batch.pixels.to(self.device, self.dtype)
            yield Batch(pixels, batch.index, batch.number)

    def _batches(self, part: Part, takes: Callable[[int], bool]) -> Iterator[Batch]:
        if isinstance(self.images, Tensor):
            return self._of_tensor(self.images, part, takes)
        if isinstance(self.images, ImageSet):
            return self._of_set(self.images, part, takes)
        return self._of_batches(part, takes)

    def _of_tensor(
        self, images: Tensor, part: Part, takes: Callable[[int], bool]
    ) -> Iterator[Batch]:
        places = torch.tensor([at for at in range(len(images)) if part.holds(at)], dtype=torch.long)
        for number, index in enumerate(places.split(self.batch_size)):
            if len(index) and takes(number):
                yield Batch(_pixels(images[index]), index, number)

    def _of_set(
        self, images: ImageSet, part: Part, takes: Callable[[int], bool]
    ) -> Iterator[Batch]:
        def number_of(place: int) -> int:
            return part.rank(place) // self.batch_size

        def wanted(place: int) -> bool:
            return part.holds(place) and takes(number_of(place))

        reading = images.batches(self.preprocess, self.batch_size, self.workers, wanted)
        for number, group in groupby(reading.images(), key=lambda image: number_of(image[0])):
            places, _, pixels = zip(*group, strict=True)
            for one in pixels:
                _same_size(one[None], pixels[0].shape)
            yield Batch(torch.stack(pixels), torch.tensor(places), number)

    def _of_batches(self, part: Part, takes: Callable[[int], bool]) -> Iterator[Batch]:
        start = 0
        given = self.images
        if isinstance(given, ImageSource):
            given = given.batches(self.preprocess, self.batch_size, self.workers)
        for number, item in enumerate(given):
            pixels = _pixels(item)
            places = range(start, start + len(pixels))
            start = places.stop
            keep = torch.tensor([part.holds(place) for place in places])
            if takes(number) and keep.any():
                yield Batch(pixels, torch.tensor(places), number).only(keep)

    def digest(self) -> str | None:
        """What identifies the images; None for an iterable, which could be anything."""
        if isinstance(self.images, Tensor):
            raw = self.images.detach().cpu().contiguous().float().numpy()
            return hashlib.sha256(raw.tobytes()).hexdigest()
        return self.images.digest() if isinstance(self.images, ImageSource) else None


def _pixels(item: Any) -> Tensor:
    if isinstance(item, Tensor):
        found: Any = item
    elif isinstance(item, (tuple, list)):
        found = item[0] if item else None
    else:
        found = getattr(item, "pixels", None)
    if not isinstance(found, Tensor) or found.ndim != 4:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(item).__name__
        raise DataError(
            f"A batch of images is a tensor [batch, channel, height, width]; found {shape}. Images "
            "on disk: tt.images(path)."
        )
    return found


def _same_size(pixels: Tensor, size: torch.Size | None) -> torch.Size:
    if size is not None and pixels.shape[1:] != size:
        raise DataError(
            f"Images of one run have one size; found {tuple(size)} and {tuple(pixels.shape[1:])} "
            "[channel, height, width]. Resize or crop them."
        )
    return pixels.shape[1:]


def held_out(index: Int[Tensor, " batch"], share: float) -> Tensor:
    """Which images are kept back from scoring: every n-th of the whole set, n = 1 / share."""
    _, out = Part.split(share)
    return torch.tensor([out.holds(place) for place in index.tolist()], dtype=torch.bool)
