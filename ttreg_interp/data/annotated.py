"""Images with what is known about each: a class, objects, a mask, depth, or a written attack."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeAlias, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from ttreg_interp.errors import DataError

logger = logging.getLogger("ttreg_interp")

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Objects:
    """Annotated objects of an image."""

    boxes: Float[Tensor, "object 4"]
    """x0, y0, x1, y1 in pixels from 0, the far edges excluded."""


@dataclass(frozen=True, eq=False)
class Mask:
    """The class of each pixel."""

    ids: Int[Tensor, "height width"]
    """Class ids from 0."""
    ignore: int
    """The id of pixels that have no class."""


@dataclass(frozen=True, eq=False)
class Depth:
    """The distance of each pixel."""

    metres: Float[Tensor, "height width"]
    """0 where it was not measured."""


@dataclass(frozen=True, eq=False)
class Attack:
    """A text in an image that names something else than the image shows."""

    real: str
    """What the image shows."""
    text: str
    """What is written in it."""
    area: Bool[Tensor, "height width"] | None = None
    """Pixels of the text; None where nobody marked them."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with an annotation, and where."""

    file: Path
    """The annotation (or image) at fault."""
    reason: str
    """What was found."""
    line: int | None = None
    """In that file, from 1; None where the file has no lines."""

    def __str__(self) -> str:
        place = "" if self.line is None else f", line {self.line}"
        return f"{self.file}{place}: {self.reason}"


@dataclass(frozen=True)
class Item(Generic[T_co]):
    """One annotated image, not yet read."""

    name: str
    """Unique within its set."""
    file: Path
    """Where the image is; for reports."""
    read_image: Callable[[], Image.Image]
    """The RGB image. Raises DataError."""
    read_target: Callable[[Size], T_co]
    """What is known about it, given the height and width of the image. Raises DataError."""
    note: str = ""
    """The annotation in short, so that a changed one is told from the one before: the class, the
    boxes, the size of the mask's file."""

    def read(self) -> "tuple[Image.Image, T_co]":
        """The image and its annotation.

        Raises:
            DataError: either cannot be read, or they do not fit together; names the file.
        """
        try:
            image = self.read_image()
        except DataError as error:
            raise DataError(f"{self.file}: {error}") from error
        return image, self.read_target((image.height, image.width))


@dataclass(frozen=True)
class Annotated(Generic[T_co]):
    """Annotated images in a fixed order. Made by `open_data` and the readers of this room."""

    source: str
    """What was opened."""
    kind: type[T_co]
    """What is known about each image: int (a class), Objects, Mask, Depth or Attack."""
    items: tuple[Item[T_co], ...]
    """The images whose annotations can be used."""
    faults: tuple[Fault, ...] = ()
    """What was found at fault, and left out, while opening."""
    classes: tuple[str, ...] = ()
    """Names of the classes by id, where there are any; empty for one that has none."""

    def __len__(self) -> int:
        return len(self.items)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the images."""
        return tuple(item.name for item in self.items)

    def digest(self) -> str:
        """SHA-256 of names and notes in order: 64 hexadecimal digits, wherever the files lie."""
        lines = "\n".join(f"{item.name}\t{item.note}" for item in self.items)
        return hashlib.sha256(lines.encode()).hexdigest()

    def take(self, limit: int | None, seed: int | None = None) -> "Annotated[T_co]":
        """The first `limit` images, or with a seed as many at random, in the same order.

        Raises:
            DataError: a limit below 1, or a seed without one.
        """
        if limit is not None and limit < 1:
            raise DataError(f"limit={limit}: allowed are 1 and more, or None for all.")
        if seed is not None and limit is None:
            raise DataError(f"seed={seed} chooses a subset, but no limit says of what size.")
        if limit is None or limit >= len(self):
            return self
        if seed is None:
            return replace(self, items=self.items[:limit])
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return replace(self, items=tuple(self.items[i] for i in sorted(order[:limit].tolist())))

    def checked(self) -> "Annotated[T_co]":
        """Itself, its faults logged.

        Raises:
            DataError: no image is left, or two have one name.
        """
        for fault in self.faults:
            logger.warning("left out: %s", fault)
        if self.faults:
            logger.warning("%s: %d annotations at fault", self.source, len(self.faults))
        if not self.items:
            shown = "".join(f"\n  {fault}" for fault in self.faults[:5])
            raise DataError(
                f"{self.source} holds no usable image, {len(self.faults)} annotations are at fault:"
                f"{shown or ' nothing was found'}\nCheck the folder that was given."
            )
        if len(set(self.names)) < len(self):
            raise DataError(f"{self.source} has images of the same name; results go by name.")
        return self
