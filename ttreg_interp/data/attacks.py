"""Typographic attacks: a text in an image that names something else than the image shows."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from ttreg_interp.data.annotated import Annotated, Attack, Fault, Item, Size
from ttreg_interp.data.decode import read_image
from ttreg_interp.data.images import images
from ttreg_interp.errors import DataError


@dataclass(frozen=True)
class Typography:
    """How a text is written into an image: black on a white label."""

    height: float = 0.12
    """Of the label, as a share of the image's shorter side; narrowed where the text is too long."""
    x: float | None = None
    """Left edge of the label as a share of the free width; None: at random."""
    y: float | None = None
    """Upper edge, likewise."""
    seed: int = 0
    """Of the places."""

    def __post_init__(self) -> None:
        if not 0.02 <= self.height <= 1:
            raise DataError(f"A label is 0.02 to 1 of the image high; found {self.height}.")
        for name, place in (("x", self.x), ("y", self.y)):
            if place is not None and not 0 <= place <= 1:
                raise DataError(f"{name} is a share from 0 to 1, or None; found {place}.")

    def write(
        self, image: Image.Image, text: str, number: int = 0
    ) -> tuple[Image.Image, Bool[Tensor, "height width"]]:
        """A copy of the image with the text, and the pixels of its label.

        Args:
            image: RGB.
            text: what to write; a line break begins another line.
            number: of the image, which together with the seed draws the place.

        Raises:
            DataError: no text, a letter that the font lacks, or an image too small for a legible
                label.

        Example:
            >>> image, area = Typography().write(Image.new("RGB", (200, 100)), "iron")
            >>> image.size, area.shape, bool(area.any())
            ((200, 100), torch.Size([100, 200]), True)
        """
        label = self._label(image.size, text)
        x, y = self._place(image.size, label.size, number)
        written = image.copy()
        written.paste(label, (x, y))
        area = torch.zeros(image.height, image.width, dtype=torch.bool)
        area[y : y + label.height, x : x + label.width] = True
        return written, area

    def _label(self, size: tuple[int, int], text: str) -> Image.Image:
        from PIL import ImageDraw

        if not text.strip():
            raise DataError("An attack needs a text; found an empty one.")
        if lacking := sorted(set(text) - _letters() - {"\n"}):
            raise DataError(
                f"{lacking[0]!r} of {text!r} is no letter of DejaVu Sans: nothing to see."
            )
        points = round(self.height * min(size) / 1.4)
        ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
        while points >= 4:
            font = _font(points)
            left, top, right, bottom = ruler.multiline_textbbox((0, 0), text, font=font)
            margin = max(1, round(0.2 * points))
            width, height = round(right - left) + 2 * margin, round(bottom - top) + 2 * margin
            if width <= size[0] and height <= size[1]:
                label = Image.new("RGB", (width, height), "white")
                draw = ImageDraw.Draw(label)
                draw.multiline_text((margin - left, margin - top), text, "black", font)
                return label
            points -= 1
        raise DataError(f"{text!r} does not fit legibly into {size[0]} x {size[1]} pixels.")

    def _place(self, size: tuple[int, int], label: tuple[int, int], number: int) -> tuple[int, int]:
        drawn = _drawn(self.seed, number).random(2).tolist()
        shares = [d if s is None else s for s, d in zip((self.x, self.y), drawn, strict=True)]
        free = [whole - part for whole, part in zip(size, label, strict=True)]
        return round(shares[0] * free[0]), round(shares[1] * free[1])


def _drawn(seed: int, number: int) -> np.random.Generator:
    """Of both numbers; torch's generator on the CPU would look at 32 bits of a seed alone."""
    return np.random.default_rng((seed, number))


def _font_file() -> str:
    """DejaVu Sans, which matplotlib brings along: the same pixels on every machine."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise DataError(
            "Texts are drawn in matplotlib's font: pip install 'ttreg-interp[plots]'."
        ) from error
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@lru_cache(maxsize=64)
def _font(points: int) -> Any:
    from PIL import ImageFont

    return ImageFont.truetype(_font_file(), points)


@cache
def _letters() -> frozenset[str]:
    """What the font can draw; anything else would be an empty box."""
    from matplotlib.ft2font import FT2Font

    return frozenset(map(chr, FT2Font(_font_file()).get_charmap()))


def attacked(
    data: Annotated[int], texts: Sequence[str] | None = None, how: Typography | None = None
) -> Annotated[Attack]:
    """Write the name of another class into every image of a labelled set.

    Args:
        data: images with classes that have names.
        texts: what to draw from; default: the names of the classes that occur.
        how: place, size and seed.

    Returns:
        The attacked images; `real` is the class name, `text` what was written, `area` where.

    Raises:
        DataError: a class without a name, or nothing else to write.
    """
    how = how or Typography()
    if not data.classes:
        raise DataError(f"{data.source} has no class names to write; give texts and names.")
    shown = [data.classes[item.read_target((1, 1))] for item in data.items]  # asks for no size
    if "" in shown:
        item = data.items[shown.index("")]
        raise DataError(f"The class of {item.name} in {data.source} has no name; name all classes.")
    words = sorted(set(texts or shown))
    items = []
    for number, (item, real) in enumerate(zip(data.items, shown, strict=True)):
        others = [text for text in words if text != real]
        if not others:
            raise DataError(f"There is no text but {real!r}; give texts of other classes.")
        text = others[int(_drawn(how.seed, number).integers(len(others)))]
        items.append(
            replace(
                item,
                read_image=partial(_written, item, how, text, number),
                read_target=partial(_target, item, how, text, number, real),
                note=f"{real}, {text}, {how}",
            )
        )
    return Annotated(f"{data.source}, attacked", Attack, tuple(items), data.faults, data.classes)


def _written(item: Item[int], how: Typography, text: str, number: int) -> Image.Image:
    return how.write(item.read_image(), text, number)[0]


def _target(
    item: Item[int], how: Typography, text: str, number: int, real: str, size: Size
) -> Attack:
    blank = Image.new("RGB", (size[1], size[0]))
    return Attack(real, text, how.write(blank, text, number)[1])


def rta100(root: Path, split: str = "") -> Annotated[Attack]:
    """RTA-100 (Azuma and Matsui, arXiv 2304.04512): photographs `label=REAL_text=WRITTEN.png`.

    Where the text stands is not annotated. A mask `areas/NAME.png` (white: text), made with an OCR
    tool, is read where it lies beside the images' folder.

    Args:
        root: the folder of the images, or one that holds `data/` or `ours/data/`.
        split: has no meaning here.
    """
    folder = next((f for f in (root / "ours" / "data", root / "data") if f.is_dir()), root)
    found = images(folder)
    items, faults, known = [], [], set()
    for name, file in zip(found.names, found.paths, strict=True):
        words = _words(file.stem)
        if words is None:
            faults.append(Fault(file, "its name is not label=REAL_text=WRITTEN"))
            continue
        area = folder.parent / "areas" / f"{file.stem}.png"
        known.add(area)
        read = partial(_rta_target, *words, area)
        note = f"{area.stat().st_size} bytes" if area.is_file() else "no area"
        items.append(Item(name, file, partial(read_image, file), read, note))
    marks = set((folder.parent / "areas").glob("*.png")) - known
    faults += [Fault(mark, "no image for this mark") for mark in sorted(marks)]
    return Annotated(f"rta100:{root}", Attack, tuple(items), tuple(faults)).checked()


def _words(stem: str) -> tuple[str, str] | None:
    label, joint, text = stem.partition("_text=")
    if not (joint and text and label.startswith("label=") and len(label) > len("label=")):
        return None
    return label.removeprefix("label="), text


def _rta_target(real: str, text: str, area: Path, size: Size) -> Attack:
    if not area.is_file():
        return Attack(real, text)
    from torchvision.transforms.functional import pil_to_tensor

    try:
        marked = pil_to_tensor(read_image(area))[0] > 127
    except DataError as error:
        raise DataError(f"{area}: {error}") from error
    if tuple(marked.shape) != size:
        raise DataError(f"{area}: {tuple(marked.shape)} pixels for an image of {size}.")
    return Attack(real, text, marked)
