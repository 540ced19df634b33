"""Batches of images or texts for the fits and measures of this room, the same on every pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from ttreg_interp.discovery.stream import ImageStream, held_out
from ttreg_interp.errors import DataError

Inputs = Shaped[Tensor, "batch ..."]
"""What a hooked model is called with: pixels, or the token ids of texts."""


@dataclass(frozen=True)
class Batches:
    """Numbered inputs of one model, all of them or one side of a split."""

    source: Any
    """Numbered batches that can be run through again."""
    share: float = 0.0
    """Share that the split holds out."""
    held_out: bool = False
    """Which side of the split this is."""

    @classmethod
    def of(cls, model: Any, inputs: Any, batch_size: int = 8, workers: int = 0) -> "Batches":
        """Images, or texts as integer token ids: a tensor, or a list of them.

        Args:
            model: a hooked model; pixels take its dtype and device.
            inputs: a pixel tensor, an image source, a list of pixel batches; or token ids
                [text, token], or a list of such batches.
            batch_size: inputs of one forward pass.
            workers: processes that decode images.

        Raises:
            DataError: an iterator, which a second pass would find empty.
        """
        if _is_text(inputs):
            return cls(_Texts(tuple(inputs.split(batch_size)), model.cfg.device))
        if isinstance(inputs, list | tuple) and inputs and _is_text(inputs[0]):
            return cls(_Texts(tuple(inputs), model.cfg.device))
        return cls(ImageStream.for_model(model, inputs, batch_size, workers))

    def split(self, share: float) -> tuple["Batches", "Batches"]:
        """What to fit on, and every n-th input held out, n = 1 / share."""
        return Batches(self.source, share), Batches(self.source, share, held_out=True)

    def __iter__(self) -> Iterator[Inputs]:
        for batch in self.source:
            out = held_out(batch.index, self.share)
            kept = batch.only(out if self.held_out else ~out)
            if len(kept):
                yield kept.pixels

    def digest(self) -> str | None:
        """What identifies the whole set, split or not; None where nothing does."""
        return self.source.digest()

    def count(self) -> tuple[int, tuple[int, int] | None]:
        """Number of inputs, and their height and width in pixels (None for texts)."""
        count, size = 0, None
        for inputs in self:
            count += len(inputs)
            height, width = inputs.shape[-2:]
            size = (height, width) if inputs.is_floating_point() else None
        return count, size

    def need(self, least: int, what: str) -> tuple[int, tuple[int, int] | None]:
        """`count()`, or the refusal of too few.

        Raises:
            DataError: fewer than `least`.
        """
        count, size = self.count()
        if count < least:
            raise DataError(
                f"Found {count} image(s) or text(s) {what}; at least {least} are needed. Give more, "
                "or lower least_images if you know that so few tell enough."
            )
        return count, size


@dataclass(frozen=True)
class _Texts:
    """Token ids by batch."""

    tokens: tuple[Tensor, ...]
    device: torch.device

    def __iter__(self) -> Iterator["_TextBatch"]:
        start = 0
        for ids in self.tokens:
            yield _TextBatch(ids.to(self.device), torch.arange(start, start + len(ids)))
            start += len(ids)

    def digest(self) -> None:
        return None


@dataclass(frozen=True)
class _TextBatch:
    """Token ids of one forward pass, as `discovery.stream.Batch` holds pixels."""

    pixels: Tensor
    index: Tensor

    def only(self, keep: Tensor) -> "_TextBatch":
        return _TextBatch(self.pixels[keep], self.index[keep])

    def __len__(self) -> int:
        return len(self.index)


def _is_text(inputs: Any) -> bool:
    return isinstance(inputs, Tensor) and not inputs.is_floating_point()
