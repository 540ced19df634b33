"""Annotated images by one word: `FORMAT:PATH[#SPLIT]`."""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ttreg_interp.data import attacks, boxes, classes, depth, masks
from ttreg_interp.data.annotated import Annotated, Attack, Objects
from ttreg_interp.errors import DataError


@dataclass(frozen=True)
class Format:
    """A format of annotated images."""

    read: Callable[[Path, str], Annotated[Any]]
    """From root and split."""
    split: str
    """The one that is meant where none is named."""
    files: str
    """What must lie there, in words."""


def _voc(year: str) -> Callable[[Path, str], Annotated[Objects]]:
    return lambda root, split: boxes.voc(root, year, split)


def _coco(root: Path, split: str) -> Annotated[Objects]:
    return boxes.coco(root / "annotations" / f"instances_{split}.json", root / split)


def _coco20k(root: Path, split: str) -> Annotated[Objects]:
    annotations = root / "annotations" / f"instances_{split}.json"
    return boxes.coco(annotations, root / split, root / "coco_20k_filenames.txt")


FORMATS: dict[str, Format] = {
    "labels": Format(classes.labelled_folder, "", "images with labels.csv"),
    "imagenet": Format(classes.imagenet, "val", "SPLIT/WNID/*.JPEG, imagenet_class_index.json"),
    "voc2007": Format(_voc("2007"), "trainval", "VOCdevkit/VOC2007"),
    "voc2012": Format(_voc("2012"), "trainval", "VOCdevkit/VOC2012"),
    "coco": Format(_coco, "val2017", "SPLIT/*.jpg, annotations/instances_SPLIT.json"),
    "coco20k": Format(_coco20k, "train2014", "as coco, with coco_20k_filenames.txt"),
    "yolo": Format(boxes.yolo, "", "images/*, boxes/*.txt, box_classes.yaml"),
    "presence": Format(boxes.presence, "person", "as yolo; #CLASS makes two classes"),
    "masks": Format(masks.semantic_folder, "", "images/*, semantic_masks/*.png"),
    "ade20k": Format(masks.ade20k, "validation", "images/SPLIT/*.jpg, annotations/SPLIT/*.png"),
    "imagenet-s": Format(masks.imagenet_s, "validation", "SPLIT/WNID, SPLIT-segmentation/WNID"),
    "imagenet-segmentation": Format(masks.imagenet_segmentation, "", "the file gtsegs_ijcv.mat"),
    "nyu": Format(depth.nyu, "test", "nyu_depth_v2_labeled.mat and splits.mat, or a list file"),
    "rta100": Format(attacks.rta100, "", "label=REAL_text=WRITTEN.png"),
}
"""Name -> how it is read."""


ATTACKED = re.compile(r"attacked(?:\[(?P<options>[^\]]*)\])?\+(?P<spec>.+)")
"""In front of a labelled set: its images with a text written into each."""


def _attacked(data: Annotated[int], options: str) -> Annotated[Attack]:
    """`KEY=VALUE,...`: fields of Typography, and texts separated by slashes."""
    kinds = {one.name: int if one.name == "seed" else float for one in fields(attacks.Typography)}
    texts, given = None, {}
    for word in filter(None, options.split(",")):
        key, _, value = word.partition("=")
        if key == "texts":
            texts = value.split("/")
            continue
        try:
            given[key] = kinds[key](value)
        except (KeyError, ValueError):
            raise DataError(
                f"attacked[{options}]: {word!r} is none of texts=A/B, "
                f"{', '.join(f'{name}=NUMBER' for name in kinds)}."
            ) from None
    return attacks.attacked(data, texts, attacks.Typography(**given))


def open_data(spec: str) -> Annotated[Any]:
    """Open annotated images; nothing is decoded yet.

    Args:
        spec: `FORMAT:PATH` or `FORMAT:PATH#SPLIT`, with a format of `FORMATS`. With `attacked+` in
            front the name of another class is written into every image of a labelled set;
            `attacked[height=0.2,x=0,y=1,seed=3,texts=iPod/pizza]+` sets the fields of `Typography`,
            and what is written.

    Returns:
        The images, what is known about each, and what is wrong with the annotations.

    Raises:
        DataError: an unknown format, a path that is not there, or no usable image.

    Example:
        >>> open_data("voc:photos")
        Traceback (most recent call last):
        ...
        ttreg_interp.errors.DataError: 'voc:photos' names no format ...
    """
    if found := ATTACKED.fullmatch(spec):
        return _attacked(open_data(found["spec"]), found["options"] or "")
    name, colon, rest = spec.partition(":")
    path, _, split = rest.partition("#")
    if not colon or not path or name not in FORMATS:
        raise DataError(
            f"{spec!r} names no format of annotated images. The form is FORMAT:PATH or "
            f"FORMAT:PATH#SPLIT, with FORMAT one of {', '.join(FORMATS)}."
        )
    chosen = FORMATS[name]
    if not Path(path).exists():
        raise DataError(f"{path} does not exist. {name!r} expects there: {chosen.files}.")
    return chosen.read(Path(path), split or chosen.split)
