"""Images in, whatever they come as: numbered batches of pixels, the same on every pass."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
    """Number of each image in the whole set."""

    def __len__(self) -> int:
        return len(self.index)

    def only(self, keep: Tensor) -> "Batch":
        """The images at which `keep` is true."""
        return Batch(self.pixels[keep], self.index[keep])


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
        start, size = 0, None
        for item in self._items():
            pixels = _pixels(item)
            size = _same_size(pixels, size)
            index = torch.arange(start, start + len(pixels))
            start += len(pixels)
            yield Batch(pixels.to(self.device, self.dtype), index)

    def _items(self) -> Iterable[Any]:
        if isinstance(self.images, Tensor):
            return self.images.split(self.batch_size)
        if isinstance(self.images, ImageSource):
            return self.images.batches(self.preprocess, self.batch_size, self.workers)
        return self.images

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
    if share == 0:
        return torch.zeros_like(index, dtype=torch.bool)
    period = max(2, round(1 / share))
    return index % period == period - 1
