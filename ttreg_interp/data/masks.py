"""Images with a mask file each: folders of PNGs, ADE20K, ImageNet-S, ImageNet-Segmentation."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ttreg_interp.data.annotated import Annotated, Fault, Item, Mask, Size
from ttreg_interp.data.decode import read_image
from ttreg_interp.data.images import images
from ttreg_interp.errors import DataError

IGNORE = 255
"""The id that readers give to pixels without a class, where a set has not an id of its own."""

_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "RGB")
"""Pillow's names of what a mask file may be: no transparency, no fractions."""


@dataclass(frozen=True)
class MaskFile:
    """One mask as a PNG file."""

    file: Path
    """8- or 16-bit grey, palette, or RGB with the id in red + 256 green."""
    ignore: int = IGNORE
    """The id of pixels that have no class."""
    first: int = 0
    """The id in the file that becomes class 0; lower ones become `ignore`."""
    classes: int | None = None
    """How many classes there are; None: any."""

    def read(self, size: Size) -> Mask:
        """The mask of an image of that size.

        Raises:
            DataError: no such file, a damaged one, another size, or an id that is no class.
        """
        ids = torch.from_numpy(self._raw().astype(np.int64))
        if tuple(ids.shape) != size:
            raise DataError(
                f"{self.file}: a mask of {ids.shape[0]} x {ids.shape[1]} pixels for an image of "
                f"{size[0]} x {size[1]}."
            )
        kept = (ids != self.ignore) & (ids >= self.first)
        ids = torch.where(kept, ids - self.first, self.ignore)
        if (
            self.classes is not None
            and (bad := ids[(ids != self.ignore) & (ids >= self.classes)]).numel()
        ):
            raise DataError(
                f"{self.file}: id {int(bad[0]) + self.first} is no class; they are {self.first} .. "
                f"{self.first + self.classes - 1}, and {self.ignore} for none."
            )
        return Mask(ids, self.ignore)

    def _raw(self) -> np.ndarray:
        try:
            with Image.open(self.file) as image:
                image.load()
                mode, values = image.mode, np.asarray(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{self.file}: cannot be read as a mask: {error}.") from error
        if mode not in _MODES:
            raise DataError(
                f"{self.file}: an image of mode {mode} holds no class ids; allowed are "
                f"{', '.join(_MODES)}."
            )
        if values.ndim == 3:
            return values[..., 0].astype(np.int64) + 256 * values[..., 1].astype(np.int64)
        return values


def paired(
    source: str,
    folder: Path,
    masks: Path,
    mask_of: Callable[[Path], Path],
    read: Callable[[Path], MaskFile],
    classes: Iterable[str] = (),
) -> Annotated[Mask]:
    """Images of a folder, each with the mask file in another folder that `mask_of` names."""
    found = images(folder)
    items, faults, used = [], [], set()
    for name, file in zip(found.names, found.paths, strict=True):
        mask = mask_of(file)
        if mask.is_file():
            size = f"{mask.stat().st_size} bytes"
            items.append(Item(name, file, partial(read_image, file), read(mask).read, size))
            used.add(mask)
        else:
            faults.append(Fault(mask, f"no mask for the image {name}"))
    others = set(masks.rglob("*.png")) - used
    faults += [Fault(mask, "no image for this mask") for mask in sorted(others)]
    return Annotated(source, Mask, tuple(items), tuple(faults), tuple(classes)).checked()


def ade20k(root: Path, split: str = "validation") -> Annotated[Mask]:
    """ADE20K of the scene parsing challenge: 150 classes, `ADEChallengeData2016`.

    The files' id 0 ("other") is ignored; ids 1 .. 150 become classes 0 .. 149.

    Args:
        root: holds `images/SPLIT/*.jpg`, `annotations/SPLIT/*.png` and `objectInfo150.txt`.
        split: "training" or "validation".
    """
    folder, masks = root / "images" / split, root / "annotations" / split
    return paired(
        f"ade20k:{root} {split}",
        folder,
        masks,
        lambda file: masks / f"{file.stem}.png",
        lambda mask: MaskFile(mask, first=1, classes=150),
        _ade_names(root / "objectInfo150.txt"),
    )


def imagenet_s(root: Path, split: str = "validation") -> Annotated[Mask]:
    """ImageNet-S (Gao et al., arXiv 2106.03149): class ids of pixels, 0 for other, 1000 ignored.

    Args:
        root: `ImageNetS50`, `ImageNetS300` or `ImageNetS919`, with `SPLIT/WNID/*.JPEG` and
            `SPLIT-segmentation/WNID/*.png` (id = red + 256 green).
        split: "validation" or "train-semi".
    """
    folder, masks = root / split, root / f"{split}-segmentation"
    return paired(
        f"imagenet-s:{root} {split}",
        folder,
        masks,
        lambda file: masks / file.relative_to(folder).with_suffix(".png"),
        lambda mask: MaskFile(mask, ignore=1000),
    )


def semantic_folder(root: Path, split: str = "") -> Annotated[Mask]:
    """`images/*` with `semantic_masks/*.png` of the same names; id 0 is unlabelled and ignored.

    Classes are the other ids, from 1, moved to 0; `semantic_classes.yaml` names them.
    """
    names = yaml_names(root / "semantic_classes.yaml", "classes")
    masks = root / "semantic_masks" / split
    return paired(
        f"masks:{root}",
        root / "images" / split,
        masks,
        lambda file: masks / f"{file.stem}.png",
        lambda mask: MaskFile(mask, first=1, classes=max(names) if names else None),
        [names.get(i, "") for i in range(1, max(names, default=0) + 1)],
    )


def imagenet_segmentation(file: Path, split: str = "") -> Annotated[Mask]:
    """ImageNet-Segmentation (Guillaumin et al. 2014), `gtsegs_ijcv.mat`: 4276 images, 1 = object.

    Args:
        file: the MATLAB 7.3 file, which is HDF5: `/value/img` and `/value/gt` hold references.
        split: has no meaning here.
    """
    with open_h5(file) as data:
        if "/value/img" not in data or "/value/gt" not in data:
            raise DataError(f"{file} is no gtsegs_ijcv.mat: it has no /value/img and /value/gt.")
        count, masks = len(data["/value/img"]), len(data["/value/gt"])
    if count != masks:
        raise DataError(f"{file}: {count} images and {masks} masks.")
    items = tuple(
        Item(f"{i:05}", file, partial(_mat_image, file, i), partial(_mat_mask, file, i))
        for i in range(count)
    )
    return Annotated(
        f"imagenet-segmentation:{file}", Mask, items, classes=("background", "object")
    ).checked()


def _mat_image(file: Path, index: int) -> Image.Image:
    with open_h5(file) as data:
        values = np.asarray(data[data["/value/img"][index, 0]])
    if values.ndim == 2:  # a grey image
        return Image.fromarray(values.T).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(values.transpose(2, 1, 0))).convert("RGB")


def _mat_mask(file: Path, index: int, size: Size) -> Mask:
    with open_h5(file) as data:
        cell = data[data["/value/gt"][index, 0]]
        values = np.asarray(data[cell[0, 0]]).T
    if values.shape != size:
        raise DataError(f"{file}: mask {index} has {values.shape} pixels, its image {size}.")
    return Mask(torch.from_numpy(values.astype(np.int64)), ignore=-1)


@contextmanager
def open_h5(file: Path) -> Iterator[Any]:
    """A MATLAB 7.3 (HDF5) file.

    Raises:
        DataError: h5py is not installed, or the file is missing, truncated, or no HDF5.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise DataError(
            "MATLAB files are read by h5py: pip install 'ttreg-interp[eval]'."
        ) from error
    try:
        with h5py.File(file, "r") as data:
            yield data
    except OSError as error:
        raise DataError(f"{file} cannot be read as HDF5: {error}.") from error


def _ade_names(file: Path) -> list[str]:
    """`objectInfo150.txt`: tab-separated, the name last."""
    if not file.is_file():
        return [""] * 150
    lines = file.read_text(encoding="utf-8").splitlines()[1:]
    return [line.split("\t")[-1].strip() for line in lines if line.strip()]


def yaml_names(file: Path, key: str) -> dict[int, str]:
    import yaml

    if not file.is_file():
        return {}
    try:
        body = yaml.safe_load(file.read_text(encoding="utf-8"))
        return {int(index): str(name) for index, name in body[key].items()}
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{file}: no mapping of ids to names under {key!r}: {error}.") from error


def nearest(ids: Tensor, size: Size) -> Tensor:
    """A mask at another size: every pixel takes the id that lies at its place."""
    shrunk = torch.nn.functional.interpolate(ids[None, None].float(), size, mode="nearest-exact")
    return shrunk[0, 0].to(ids.dtype)
