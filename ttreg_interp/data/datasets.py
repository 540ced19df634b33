"""Images of datasets: torchvision's, Hugging Face's (streamed or not), and tars of images."""

import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from ttreg_interp.data.decode import decode_image, read_image, upright_rgb
from ttreg_interp.data.passes import ImageSet, Unread
from ttreg_interp.errors import DataError

HUB = "hf:"
"""Begins the name of a dataset of Hugging Face: hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT."""
TARS = (".tar", ".tar.gz", ".tgz")
"""Endings of the tars of WebDataset."""
BUFFER = 1000
"""Images among which each one of a shuffled stream is drawn."""
SAMPLED = 16
"""Images that a digest looks at."""


@runtime_checkable
class Items(Protocol):
    """What has a length and gives any item by its number."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int) -> Any: ...


@dataclass(frozen=True)
class DatasetImages(ImageSet):
    """Images of a dataset that has a length and gives any item. Made by `images`."""

    read: Callable[[int], Image.Image]
    """Item -> RGB image."""
    numbers: Sequence[int]
    """The items."""
    name: str
    """What the dataset is called."""

    def __len__(self) -> int:
        return len(self.numbers)

    def unread(self) -> Iterator[Unread]:
        """The images in order."""
        for number in self.numbers:
            yield Unread(Path(f"{self.name}/{number}"), partial(self.read, number))

    def subset(self, places: Sequence[int]) -> "DatasetImages":
        """The images at these places."""
        return DatasetImages(self.read, [self.numbers[i] for i in places], self.name)

    def digest(self) -> str:
        """SHA-256 of the items' numbers and of 16 images spread evenly over them."""
        every = max(1, len(self) // SAMPLED)
        lines = [f"{list(self.numbers)}"]
        lines += [_pixel_digest(partial(self.read, number)) for number in self.numbers[::every]]
        return _sha256(lines)


@dataclass(frozen=True)
class StreamedImages(ImageSet):
    """Images of a stream, read anew from its beginning on every pass. Made by `images`."""

    rows: Any
    """A `datasets.IterableDataset`, its images not decoded."""
    column: str
    """Which of its columns holds the images."""
    name: str
    """What the stream is called."""
    limit: int | None
    """How many images are taken, or all there are."""

    def __len__(self) -> int:
        if self.limit is None:
            raise DataError(f"{self.name} is a stream, whose length is not known. Give limit.")
        return self.limit

    def unread(self) -> Iterator[Unread]:
        """The images in order."""
        for number, row in enumerate(self.rows):
            raw = row[self.column] or {}
            key = row.get("__key__") or raw.get("path") or number
            yield Unread(Path(str(key)), partial(_read_raw, raw))

    def digest(self) -> str:
        """SHA-256 of the limit and of the first 16 images."""
        first = zip(range(SAMPLED), self.unread(), strict=False)
        return _sha256([f"{self.limit}", *(_pixel_digest(one.read) for _, one in first)])


def is_dataset(source: Any) -> bool:
    """Whether `open_dataset` takes it: a name, or anything but image files."""
    if isinstance(source, (str, Path)):
        return str(source).startswith(HUB) or str(source).endswith(TARS)
    files = isinstance(source, (list, tuple)) and all(isinstance(p, (str, Path)) for p in source)
    return not files


def open_dataset(
    source: Any, limit: int | None, seed: int | None
) -> DatasetImages | StreamedImages:
    """The images of a dataset; see `images`.

    Args:
        source: A name, or an object.
        limit: Of a stream: how many images are taken.
        seed: Of a stream: it is shuffled with this seed before.

    Raises:
        DataError: The dataset cannot be opened, has no column of images, or is none.
    """
    if isinstance(source, (str, Path)):
        return _streamed(_load(str(source)), str(source), limit, seed)
    library = sys.modules.get("datasets")  # whoever has such an object has imported it
    if library is not None and isinstance(source, library.IterableDataset):
        return _streamed(source, "stream", limit, seed)
    if library is not None and isinstance(source, library.Dataset):
        rows, column = _undecoded(source, "this dataset")
        return DatasetImages(partial(_read_row, rows, column), range(len(rows)), column)
    if not isinstance(source, Items):
        raise DataError(
            "Images come from a folder, a list of files, hf:NAME:SPLIT, tars, or a dataset with a "
            f"length and items; found {type(source).__name__}."
        )
    return DatasetImages(partial(_read_item, source), range(len(source)), type(source).__name__)


def _load(name: str) -> Any:
    """The rows behind `hf:NAME:SPLIT` or a pattern of tars, streamed."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(
            f"{name} is read by the library datasets, which is not there: pip install datasets."
        ) from None
    try:
        if name.startswith(HUB):
            return load_dataset(*_parts(name)[:-1], split=_parts(name)[-1], streaming=True)
        files = _braces(name)
        return load_dataset("webdataset", data_files=files, split="train", streaming=True)
    except Exception as error:  # of missing files, networks, builders: anything
        raise DataError(f"{name} cannot be opened: {error} ({type(error).__name__}).") from error


def _parts(name: str) -> list[str]:
    """NAME, perhaps CONFIG, and SPLIT."""
    parts = name.removeprefix(HUB).split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(f"{name} is not hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT.")
    return parts


def _braces(pattern: str) -> list[str]:
    """A pattern with `{000..012}` written out, as WebDataset means it."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [whole for n in numbers for whole in _braces(f"{before}{n:0{len(first)}d}{after}")]


def _streamed(rows: Any, name: str, limit: int | None, seed: int | None) -> StreamedImages:
    if seed is not None:
        rows = rows.shuffle(seed=seed, buffer_size=BUFFER)
    rows, column = _undecoded(rows if limit is None else rows.take(limit), name)
    return StreamedImages(rows, column, name, limit)


def _undecoded(rows: Any, name: str) -> tuple[Any, str]:
    """The rows with the images as bytes, for `decode` to read; and the column they are in."""
    from datasets import Image as ImageColumn

    features = rows.features or rows._resolve_features().features
    columns = [key for key, kind in features.items() if isinstance(kind, ImageColumn)]
    if len(columns) != 1:
        raise DataError(
            f"{name} has {len(columns)} columns of images ({', '.join(columns or features)}); one is "
            "needed. Load it yourself and give dataset.select_columns([...])."
        )
    return rows.cast_column(columns[0], ImageColumn(decode=False)), columns[0]


def _read_raw(raw: Mapping[str, Any]) -> Image.Image:
    """An image as `datasets` stores it: bytes, or a path."""
    return read_image(raw["path"]) if raw.get("bytes") is None else decode_image(raw["bytes"])


def _read_row(rows: Any, column: str, number: int) -> Image.Image:
    return _read_raw(rows[number][column])


def _read_item(dataset: Any, number: int) -> Image.Image:
    """An item of a torchvision dataset: an image, or a tuple that begins with one."""
    try:
        item = dataset[number]
    except Exception as error:  # of damaged files, datasets raise anything
        raise DataError(f"cannot be read: {error} ({type(error).__name__})") from error
    image = item[0] if isinstance(item, (tuple, list)) and item else item
    if not isinstance(image, Image.Image):
        raise DataError(
            f"no PIL image but {type(image).__name__}: give the dataset without its transform"
        )
    return upright_rgb(image)


def _pixel_digest(read: Callable[[], Image.Image]) -> str:
    try:
        return hashlib.sha256(read().tobytes()).hexdigest()
    except DataError:
        return "unreadable"


def _sha256(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
