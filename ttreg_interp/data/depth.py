"""Images with depth: NYU Depth v2, as its MATLAB file or as a list of image and depth files."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ttreg_interp.data.annotated import Annotated, Depth, Fault, Item, Size
from ttreg_interp.data.decode import read_image
from ttreg_interp.data.masks import open_h5
from ttreg_interp.errors import DataError

MILLIMETRES = 1000.0
"""Units of the depth PNGs in a metre."""


def nyu(source: Path, split: str = "test") -> Annotated[Depth]:
    """NYU Depth v2.

    Args:
        source: a folder with `nyu_depth_v2_labeled.mat` (1449 images) and `splits.mat` (795 train,
            654 test); or a text file with a line `IMAGE DEPTH [FOCAL]` for every image (BTS,
            DINOv2), its depths 16-bit PNGs in millimetres.
        split: "train" or "test", for the MATLAB file.

    Raises:
        DataError: no such files, or files of another form.
    """
    if source.is_dir():
        return _from_mat(source / "nyu_depth_v2_labeled.mat", source / "splits.mat", split)
    return _from_list(source)


def _from_list(source: Path) -> Annotated[Depth]:
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The list {source} cannot be read: {error}.") from error
    items, faults = [], []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if len(words) not in (2, 3) or words[1] == "None":
            faults.append(Fault(source, f"{line!r} is not: IMAGE DEPTH [FOCAL]", number))
            continue
        image, depth = (source.parent / word.lstrip("/") for word in words[:2])
        missing = [path for path in (image, depth) if not path.is_file()]
        if missing:
            faults.append(Fault(source, f"no such file {missing[0]}", number))
            continue
        read = partial(_png_depth, depth)
        size = f"{depth.stat().st_size} bytes"
        items.append(Item(words[0].lstrip("/"), image, partial(read_image, image), read, size))
    return Annotated(f"nyu:{source}", Depth, tuple(items), tuple(faults)).checked()


def _png_depth(file: Path, size: Size) -> Depth:
    try:
        with Image.open(file) as image:
            mode, values = image.mode, np.asarray(image).astype(np.float32)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as depth: {error}.") from error
    if not mode.startswith("I"):
        raise DataError(
            f"{file}: an image of mode {mode}; depths are 16-bit grey, in millimetres, or they would be "
            "read in a wrong unit."
        )
    if values.shape != size:
        raise DataError(f"{file}: depth of {values.shape} pixels for an image of {size}.")
    return Depth(torch.from_numpy(values / MILLIMETRES))


def _from_mat(file: Path, splits: Path, split: str) -> Annotated[Depth]:
    from scipy.io import loadmat

    keys = {"train": "trainNdxs", "test": "testNdxs"}
    if split not in keys:
        raise DataError(f"NYU Depth v2 has the splits train and test; found {split!r}.")
    try:
        numbers = loadmat(str(splits))[keys[split]].ravel().astype(int) - 1
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{splits} has no {keys[split]}: {error}.") from error
    with open_h5(file) as data:
        missing = [key for key in ("images", "depths") if key not in data]
        count = 0 if missing else len(data["images"])
    if missing or not 0 <= numbers.min() <= numbers.max() < count:
        raise DataError(
            f"{file} has {count} images{f' and no {missing[0]}' if missing else ''}; {splits} "
            f"names images {numbers.min() + 1} to {numbers.max() + 1}. They belong together: 1449 images."
        )
    items = tuple(
        Item(f"{i:05}", file, partial(_mat_image, file, i), partial(_mat_depth, file, i))
        for i in numbers.tolist()
    )
    return Annotated(f"nyu:{file} {split}", Depth, items).checked()


def _mat_image(file: Path, index: int) -> Image.Image:
    """MATLAB stores columns first: [channel, width, height]."""
    values = _slice(file, "images", index)
    return Image.fromarray(np.ascontiguousarray(values.transpose(2, 1, 0)))


def _mat_depth(file: Path, index: int, size: Size) -> Depth:
    values = _slice(file, "depths", index).T
    return Depth(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)))


def _slice(file: Path, key: str, index: int) -> Any:
    with open_h5(file) as data:
        return np.asarray(data[key][index])
