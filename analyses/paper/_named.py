"""Images with names, and words for models without a text tower.

Crops of a photograph are one class, called by the photograph's name. A model that has no text tower
gets a stand-in, for which the text of a class is the mean embedding of other crops of it: it shows what
arms do to a classifier in the embedding space, and nothing about language.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from analyses._bench import BenchConfig
from ttreg_interp.data.annotated import Annotated, Item, Size
from ttreg_interp.data.open import open_data
from ttreg_interp.errors import DataError
from ttreg_interp.evaluations.arms import Arms, standard_arms
from ttreg_interp.evaluations.classification import preprocessed
from ttreg_interp.evaluations.text import Prompts
from ttreg_interp.hooked import HookedViT
from ttreg_interp.hooked.text import TextTower
from ttreg_interp.testbed import photographs

SIZE = 320
SHOWN = {"chelsea": "cat", "camera": "photographer", "hubble": "galaxies", "cell": "cell nucleus"}
"""What a photograph shows, where its name does not say it."""
TOLD, FITTED = 1, 2
"""Seeds of crops: of those that stand in for text, and of those on which k' and v' are measured."""
PROMPTS = Prompts(names="data", templates="photo")
STAND_IN = (
    "The model has no text tower. A stand-in takes its place: the text of a class is the mean embedding "
    "of other crops of that photograph."
)
"""What a reader must know."""


@dataclass(frozen=True)
class Config(BenchConfig):
    """Crops of photographs, or a set of images with classes."""

    data: str = ""
    """FORMAT:PATH#SPLIT of images with classes; absent: crops of photographs."""
    count: int = 48
    """So many images of them at most; `limit` is for the images of the outliers."""

    def named(self) -> Annotated[int]:
        """The set that was named, or crops."""
        if self.data:
            return open_data(self.data).take(self.count, self.seed)
        return crops(self.count)

    def speaking(self) -> HookedViT:
        """The bench's model, which understands words.

        Raises:
            DataError: it does not, and a set was named for which nothing can stand in.
        """
        model = self.bench.model
        if model.text is None and self.data:
            raise DataError(
                f"{model.cfg.model_name} has no text tower. A stand-in is made for crops of "
                f"photographs only: leave out --data {self.data}, or take a CLIP or SigLIP model."
            )
        return model if model.text is not None else speaking(model, crops(64, TOLD))

    def arms(self, model: HookedViT, names: list[str]) -> Arms:
        """Standard arms; k' and v' are measured on crops of their own."""
        fit = _batches(model, crops(32, FITTED)) if "bias" in names else ()
        return standard_arms(model, self.bench.neurons, names, fit, 3, self.seed)


@lru_cache(maxsize=1)
def _photographs() -> dict[str, Image.Image]:
    return {SHOWN.get(name, name): one for name, one in photographs(SIZE).items()}


def crops(count: int, seed: int = 0, least: float = 0.6) -> Annotated[int]:
    """Crops of the photographs in turn, of `least` to all of their side, some mirrored."""
    names = tuple(_photographs())
    items = tuple(
        Item(
            f"crop {number} of {names[number % len(names)]}",
            Path(f"crop-{number}"),
            partial(_crop, number, seed, least),
            partial(_class, number % len(names)),
        )
        for number in range(count)
    )
    return Annotated(f"crops {seed} of photographs", int, items, classes=names)


def _crop(number: int, seed: int, least: float) -> Image.Image:
    whole = list(_photographs().values())[number % len(_photographs())]
    generator = torch.Generator().manual_seed(seed * 10_000 + number)
    share, x, y, mirrored = torch.rand(4, generator=generator).tolist()
    side = round(SIZE * (least + (1 - least) * share))
    left, top = round(x * (SIZE - side)), round(y * (SIZE - side))
    part = whole.crop((left, top, left + side, top + side))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored < 0.5 else part


def _class(index: int, size: Size) -> int:
    return index


@torch.no_grad()
def speaking(model: HookedViT, examples: Annotated[int]) -> HookedViT:
    """The same model with a text tower that stands in: a class's text is the mean of its examples."""
    embedded = torch.cat([normalize(model(part).float(), dim=-1) for part in _batches(model, examples)])  # fmt: skip
    classes = torch.tensor([item.read_target((1, 1)) for item in examples.items])
    of_class = [embedded[classes == index] for index in range(len(examples.classes))]
    directions = torch.stack([own.mean(dim=0) for own in of_class])
    twin = HookedViT.wrap(model.source)
    twin.preprocess, twin.spec = model.preprocess, model.spec
    twin.text = TextTower(
        model.source, partial(_numbers, examples.classes), partial(_rows, directions)
    )
    return twin


def _batches(model: HookedViT, data: Annotated[int], size: int = 16) -> Iterator[Tensor]:
    for start in range(0, len(data), size):
        items = data.items[start : start + size]
        pixels = torch.stack([preprocessed(model, item.read_image()) for item in items])
        yield pixels.to(model.cfg.device, model.cfg.dtype)


def _numbers(names: tuple[str, ...], texts: Any) -> Int[Tensor, "text 1"]:
    """The class that a text names."""
    meant = [max((name for name in names if name in text), key=len) for text in texts]
    return torch.tensor([[names.index(name)] for name in meant])


def _rows(
    directions: Float[Tensor, "class output"], ids: Int[Tensor, "text 1"]
) -> Float[Tensor, "text output"]:
    return directions.to(ids.device)[ids[:, 0]]
