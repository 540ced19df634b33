"""Class labels of image files, from a CSV file."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from jaxtyping import Int
from torch import Tensor

from ttreg_interp.errors import DataError

COLUMNS = ("file", "class_index", "name")
"""Columns that a label file must have; others are passed over."""


@dataclass(frozen=True)
class Label:
    """The class of one image."""

    index: int
    """Of the class, from 0."""
    name: str
    """Of the class."""


@dataclass(frozen=True)
class Labels:
    """The class of each image file. Made by `read_labels`."""

    source: Path
    """The file they were read from."""
    by_file: Mapping[str, Label]
    """Path of an image, as written in the source -> its label."""

    def __len__(self) -> int:
        return len(self.by_file)

    @property
    def names(self) -> dict[int, str]:
        """Class index -> class name, of the classes that occur, in the order of the index."""
        named = {label.index: label.name for label in self.by_file.values()}
        return dict(sorted(named.items()))

    def of(self, path: Path | str) -> Label:
        """The label of an image file.

        Args:
            path: Looked up as its path within the folder of the source, else by its name.

        Raises:
            DataError: If it has no label.
        """
        path = Path(path)
        within = path.is_relative_to(self.source.parent)
        key = path.relative_to(self.source.parent).as_posix() if within else path.name
        if key not in self.by_file:
            raise DataError(
                f"{path} has no label: {self.source} has {len(self)} lines, none with file "
                f"{key!r}. Add it, or leave the image out."
            )
        return self.by_file[key]

    def indices(self, paths: Iterable[Path | str]) -> Int[Tensor, " batch"]:
        """The class index of each image file.

        Raises:
            DataError: If one has no label.
        """
        return torch.tensor([self.of(path).index for path in paths], dtype=torch.long)


def read_labels(source: Path | str) -> Labels:
    """Read a CSV file with the columns file, class_index and name.

    Args:
        source: UTF-8, with a header line, as `file,class_index,wnid,name`.

    Returns:
        The label of every file.

    Raises:
        DataError: If the file or a column is missing, or a line is at fault: no file or name, a
            class index that is no whole number from 0, a file twice, or a class under two names.
            The message names file and line.
    """
    source = Path(source)
    try:
        with source.open(encoding="utf-8-sig", newline="") as text:
            return Labels(source, _read_lines(source, text))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"The labels {source} cannot be read as UTF-8 CSV: {error}.") from error


def _read_lines(source: Path, text: TextIO) -> dict[str, Label]:
    reader = csv.DictReader(text)
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise DataError(
            f"{source}, line 1: no column {', '.join(missing)} among "
            f"{', '.join(reader.fieldnames or ['none'])}. Needed are {', '.join(COLUMNS)}."
        )
    by_file: dict[str, Label] = {}
    names: dict[int, str] = {}
    for row in reader:
        fault = f"{source}, line {reader.line_num}"
        file, label = _read_row(row, fault)
        if file in by_file:
            raise DataError(f"{fault}: {file!r} has a label already. Keep one line a file.")
        if names.setdefault(label.index, label.name) != label.name:
            raise DataError(
                f"{fault}: class {label.index} is called {label.name!r} here and "
                f"{names[label.index]!r} before. Keep one name a class."
            )
        by_file[file] = label
    if not by_file:
        raise DataError(f"{source} has a header and no label. Add a line for every image.")
    return by_file


def _read_row(row: Mapping[str, str | None], fault: str) -> tuple[str, Label]:
    file, index, name = ((row[column] or "").strip() for column in COLUMNS)
    if not file or not name:
        raise DataError(f"{fault}: file {file!r} and name {name!r} must both be filled in.")
    if not index.isascii() or not index.isdigit():
        raise DataError(f"{fault}: class_index {index!r} is no whole number from 0.")
    return file, Label(int(index), name)
