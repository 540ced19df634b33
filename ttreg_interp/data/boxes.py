"""Images with annotated objects: PASCAL VOC, COCO, and folders in YOLO's format."""

import contextlib
import io
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ttreg_interp.data.annotated import Annotated, Fault, Item, Objects, Size
from ttreg_interp.data.classes import class_item
from ttreg_interp.data.decode import read_image
from ttreg_interp.data.images import images
from ttreg_interp.data.masks import yaml_names
from ttreg_interp.errors import DataError


def voc(root: Path, year: str, split: str = "trainval") -> Annotated[Objects]:
    """PASCAL VOC 2007 or 2012, the folder that torchvision downloads.

    Boxes of VOC count pixels from 1 and include the last; here they count from 0 and exclude it.
    Difficult and truncated objects stay, as in LOST.

    Args:
        root: holds `VOCdevkit/VOCYEAR`.
        year: "2007" or "2012".
        split: "trainval" (LOST), "train", "val", for 2007 also "test".

    Raises:
        DataError: no such folder or split, or no usable image.
    """
    from torchvision.datasets import VOCDetection

    kind = f"{year}-test" if (year, split) == ("2007", "test") else year
    try:
        found = VOCDetection(str(root), year=kind, image_set=split)
    except (RuntimeError, ValueError, FileNotFoundError) as error:
        raise DataError(
            f"No VOC {year} {split} in {root}: {error} Expected is {root}/VOCdevkit/VOC{year}."
        ) from error
    items, faults = [], []
    for image, note in zip(map(Path, found.images), map(Path, found.targets), strict=True):
        boxes, size, wrong = _voc_boxes(note)
        faults += wrong
        if boxes:
            items.append(_item(image.stem, image, boxes, size))
        elif not wrong:
            faults.append(Fault(note, "no object; corloc is undefined there"))
    return Annotated(f"voc{year}:{root} {split}", Objects, tuple(items), tuple(faults)).checked()


def _voc_boxes(note: Path) -> tuple[list[list[float]], Size | None, list[Fault]]:
    """Boxes of one annotation, the size of its image, and what is at fault in it."""
    try:
        text = note.read_text(encoding="utf-8")
        root = ET.fromstring(text)
    except ET.ParseError as error:
        return [], None, [Fault(note, f"no valid XML: {error}", error.position[0])]
    except (OSError, UnicodeDecodeError) as error:
        return [], None, [Fault(note, f"cannot be read: {error}")]
    size = _voc_size(root)
    boxes, faults = [], []
    things = list(root.iter("object"))
    for line, thing in zip(_lines_of(text, "object", len(things)), things, strict=True):
        try:
            edges = [thing.findtext(f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
            x0, y0, x1, y1 = (float(edge) for edge in edges if edge is not None)
        except ValueError:
            faults.append(Fault(note, "an object without xmin, ymin, xmax and ymax", line))
            continue
        if x1 < x0 or y1 < y0:
            faults.append(Fault(note, f"a box without area: {[x0, y0, x1, y1]}", line))
        elif size and _outside([x0 - 1, y0 - 1, x1, y1], size):
            reason = f"a box outside its image of {size[0]} x {size[1]}: {[x0, y0, x1, y1]}"
            faults.append(Fault(note, reason, line))
        else:
            boxes.append([x0 - 1, y0 - 1, x1, y1])
    return boxes, size, faults


def _voc_size(root: ET.Element) -> Size | None:
    """Height and width that an annotation says, where it says them."""
    sides = [root.findtext(f"size/{side}", "").strip() for side in ("height", "width")]
    height, width = (int(side) if side.isdigit() else 0 for side in sides)
    return (height, width) if height and width else None


def _outside(box: list[float | int], size: Size) -> bool:
    """Whether a box leaves its image by more than the pixel that rounding may cost."""
    x0, y0, x1, y1 = box
    return min(x0, y0) < -1 or x1 > size[1] + 1 or y1 > size[0] + 1


def _lines_of(text: str, tag: str, count: int) -> list[int] | list[None]:
    """The line of each element; unknown where the text has such a tag in a comment too."""
    lines = [text.count("\n", 0, m.start()) + 1 for m in re.finditer(rf"<{tag}[\s/>]", text)]
    return lines if len(lines) == count else [None] * count


def coco(annotations: Path, folder: Path, subset: Path | None = None) -> Annotated[Objects]:
    """COCO: an `instances_*.json` and the folder of its images; crowds are left out, as in LOST.

    Args:
        annotations: the JSON file, read by pycocotools.
        folder: of the images.
        subset: a text file with an image file a line, as LOST's `coco_20k_filenames.txt`.

    Raises:
        DataError: a file that is missing or no COCO JSON (with the line), or no usable image.
    """
    index, found = _coco_index(annotations)
    chosen = _listed(subset)
    items = []
    by_name, odd = _coco_images(found)
    faults = [Fault(annotations, reason) for reason in (*odd, *_orphans(index))]
    if subset is not None:
        faults += [
            Fault(subset, f"{name} is not in {annotations.name}", line)
            for name, line in chosen.items()
            if name not in by_name
        ]
    for name, entry in by_name.items():
        if subset is not None and name not in chosen:
            continue
        ids = index.getAnnIds(imgIds=[entry["id"]], iscrowd=0)
        size = entry["height"], entry["width"]
        boxes, wrong = _coco_boxes(annotations, index.loadAnns(ids), size)
        faults += wrong
        if not (folder / name).is_file():
            faults.append(Fault(folder / name, f"no such image; {annotations.name} names it"))
        elif boxes:
            items.append(_item(name, folder / name, boxes, size))
        elif not wrong:
            faults.append(Fault(annotations, f"image {name} has no object besides crowds"))
    return Annotated(f"coco:{annotations}", Objects, tuple(items), tuple(faults)).checked()


def _coco_index(annotations: Path) -> tuple[Any, list[dict[str, Any]]]:
    try:
        from pycocotools.coco import COCO
    except ModuleNotFoundError as error:
        raise DataError("COCO is read by pycocotools: pip install 'ttreg-interp[eval]'.") from error
    try:
        with annotations.open(encoding="utf-8") as text:
            body = json.load(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{annotations}, line {error.lineno}: no valid JSON: {error.msg}."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{annotations} cannot be read: {error}.") from error
    missing = [key for key in ("images", "annotations") if key not in body]
    if missing:
        raise DataError(f"{annotations} has no {' and no '.join(missing)}: no COCO instances file.")
    index = COCO()
    index.dataset = body
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports by printing
            index.createIndex()
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{annotations}: an entry without {error}: no COCO instances file."
        ) from error
    return index, body["images"]


def _coco_images(found: list[dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Entries by the name of the image file, and what is wrong with others."""
    by_name: dict[str, dict[str, Any]] = {}
    wrong = []
    for entry in found:
        missing = [key for key in ("file_name", "height", "width") if key not in entry]
        if missing:
            wrong.append(f"image {entry['id']} has no {', '.join(missing)}")
        elif (name := Path(entry["file_name"]).name) in by_name:
            wrong.append(f"image {entry['id']} is the second one called {name}")
        else:
            by_name[name] = entry
    return by_name, wrong


def _orphans(index: Any) -> list[str]:
    known = set(index.imgs)
    return [
        f"annotation {note['id']} is of image {note['image_id']}, which is not listed"
        for note in index.dataset["annotations"]
        if note["image_id"] not in known
    ]


def _coco_boxes(
    annotations: Path, notes: list[dict[str, Any]], size: Size
) -> tuple[list[list[float]], list[Fault]]:
    boxes, faults = [], []
    for note in notes:
        box = note.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or box[2] <= 0 or box[3] <= 0:
            reason = f"annotation {note['id']}: bbox {box} is no x, y, width, height above 0"
            faults.append(Fault(annotations, reason))
            continue
        x, y, width, height = box
        if _outside(edges := [x, y, x + width, y + height], size):
            reason = (
                f"annotation {note['id']}: bbox {box} leaves its image of {size[0]} x {size[1]}"
            )
            faults.append(Fault(annotations, reason))
        else:
            boxes.append(edges)
    return boxes, faults


def _listed(subset: Path | None) -> dict[str, int]:
    """File names of a list, with their lines."""
    if subset is None:
        return {}
    try:
        lines = subset.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The list {subset} cannot be read: {error}.") from error
    return {Path(line.strip()).name: n for n, line in enumerate(lines, 1) if line.strip()}


def yolo(root: Path, split: str = "") -> Annotated[Objects]:
    """`images/*` with `boxes/*.txt`: a line `class x_centre y_centre width height`, shares of the image.

    Args:
        root: of both folders; `box_classes.yaml` may name the classes.
        split: a folder within both, where there is one.
    """
    items, faults, notes = [], [], set()
    for name, file, note in _yolo_files(root, split):
        objects, wrong = _yolo_lines(note)
        faults += wrong
        notes.add(note)
        shares = [share for _, share in objects]
        if shares:
            read = partial(read_image, file)
            items.append(Item(name, file, read, partial(_scaled, shares), f"{shares}"))
        elif not wrong:
            faults.append(Fault(note, "no object; corloc is undefined there"))
    others = set((root / "boxes" / split).rglob("*.txt")) - notes
    faults += [Fault(note, "no image for these boxes") for note in sorted(others)]
    classes = _yolo_classes(root)
    return Annotated(f"yolo:{root}", Objects, tuple(items), tuple(faults), classes).checked()


def presence(root: Path, wanted: str) -> Annotated[int]:
    """The folder of `yolo`, its images in two classes: without (0) and with (1) an object of a class.

    Args:
        root: as for `yolo`.
        wanted: the class, by its name in `box_classes.yaml`.

    Raises:
        DataError: no class of that name; lists some.
    """
    names = _yolo_classes(root)
    if wanted not in names:
        raise DataError(f"{root} has no class {wanted!r}. There are {', '.join(names[:8])}, ...")
    items, faults = [], []
    for name, file, note in _yolo_files(root, ""):
        objects, wrong = _yolo_lines(note)
        faults += wrong
        if not wrong:
            has = int(names.index(wanted) in [index for index, _ in objects])
            items.append(class_item(name, file, has))
    classes = (f"no {wanted}", wanted)
    return Annotated(
        f"presence:{root}#{wanted}", int, tuple(items), tuple(faults), classes
    ).checked()


def _yolo_files(root: Path, split: str) -> Iterator[tuple[str, Path, Path]]:
    """Name and file of each image, and its annotation."""
    found = images(root / "images" / split)
    for name, file in zip(found.names, found.paths, strict=True):
        yield name, file, (root / "boxes" / split / name).with_suffix(".txt")


def _yolo_classes(root: Path) -> tuple[str, ...]:
    names = yaml_names(root / "box_classes.yaml", "names")
    return tuple(names.get(i, "") for i in range(max(names, default=-1) + 1))


def _yolo_lines(note: Path) -> tuple[list[tuple[int, list[float]]], list[Fault]]:
    """Class and edges of every object, as shares of the image."""
    try:
        lines = note.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return [], [Fault(note, f"cannot be read: {error}")]
    objects, faults = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            index, x, y, width, height = (float(word) for word in line.split())
        except ValueError:
            faults.append(Fault(note, f"{line!r} is not: class x y width height", number))
            continue
        within = 0 < width <= 1 and 0 < height <= 1 and 0 <= x <= 1 and 0 <= y <= 1
        if not (within and index >= 0 and index.is_integer()):
            faults.append(Fault(note, f"{line!r} is no box within the image", number))
        else:
            edges = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            objects.append((int(index), edges))
    return objects, faults


def _scaled(shares: list[list[float]], size: Size) -> Objects:
    height, width = size
    boxes = torch.tensor(shares) * torch.tensor([width, height, width, height])
    return Objects(boxes)


def _item(
    name: str, image: Path, boxes: list[list[float]], size: Size | None = None
) -> Item[Objects]:
    read = partial(_fixed, image, Objects(torch.tensor(boxes, dtype=torch.float32)), size)
    return Item(name, image, partial(read_image, image), read, f"{boxes}")


def _fixed(image: Path, objects: Objects, expected: Size | None, size: Size) -> Objects:
    if expected is not None and size != expected:
        raise DataError(
            f"{image} has {size[0]} x {size[1]} pixels; its annotation says "
            f"{expected[0]} x {expected[1]}."
        )
    return objects
