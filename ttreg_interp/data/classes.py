"""Images with one class each: ImageNet's folders, and a folder with a CSV file of labels."""

import json
from functools import partial
from pathlib import Path

from ttreg_interp.data.annotated import Annotated, Fault, Item, Size
from ttreg_interp.data.decode import read_image
from ttreg_interp.data.images import EXTENSIONS, images
from ttreg_interp.data.labels import read_labels
from ttreg_interp.errors import DataError

INDEX = "imagenet_class_index.json"
"""`{"0": ["n01440764", "tench"], ...}`, as published with Keras."""


def labelled_folder(root: Path, split: str = "") -> Annotated[int]:
    """A folder of images with `labels.csv`: the columns file, class_index and name.

    Args:
        root: of the images and the file.
        split: a folder within the root, with a `labels.csv` of its own.
    """
    folder = root / split
    labels = read_labels(folder / "labels.csv")
    found = images(folder)
    items, faults = [], []
    for name, file in zip(found.names, found.paths, strict=True):
        if name in labels.by_file:
            items.append(class_item(name, file, labels.by_file[name].index))
        else:
            faults.append(Fault(labels.source, f"no line for the image {name}"))
    present = set(found.names)
    faults += [
        Fault(folder / name, f"no such image; {labels.source.name} names it")
        for name in labels.by_file
        if name not in present
    ]
    count = max(labels.names) + 1
    classes = tuple(labels.names.get(i, "") for i in range(count))
    return Annotated(f"labels:{folder}", int, tuple(items), tuple(faults), classes).checked()


def imagenet(root: Path, split: str = "val") -> Annotated[int]:
    """ImageNet-1k as a folder for each class, `SPLIT/WNID/*.JPEG`.

    Class ids come from `imagenet_class_index.json` in the root; without it, from the sorted
    folders, of which there must be 1000 then.

    Args:
        root: holds the splits.
        split: "val" or "train".

    Raises:
        DataError: no such folder, an index that cannot be read, or fewer folders and no index.
    """
    folder = root / split
    if not folder.is_dir():
        raise DataError(f"No folder {folder}. ImageNet is expected as {folder}/n01440764/*.JPEG.")
    wnids = sorted(path.name for path in folder.iterdir() if path.is_dir())
    known = _index(root / INDEX, wnids)
    items, faults = [], []
    for wnid in wnids:
        if wnid not in known:
            faults.append(Fault(folder / wnid, f"no class of the index {root / INDEX}"))
            continue
        files = sorted((folder / wnid).iterdir())
        others = [file for file in files if file.suffix.lower() not in EXTENSIONS]
        faults += [Fault(file, "no image, by its name") for file in others]
        items += [
            class_item(f"{wnid}/{file.name}", file, known[wnid][0])
            for file in files
            if file not in others
        ]
        if len(others) == len(files):
            faults.append(Fault(folder / wnid, "a class without images"))
    without = sorted(set(known) - set(wnids))
    if without:
        reason = f"{len(without)} classes of the index have no folder, the first is {without[0]}"
        faults.append(Fault(root / INDEX, reason))
    classes = tuple(name for _, name in sorted(known.values()))
    return Annotated(
        f"imagenet:{root} {split}", int, tuple(items), tuple(faults), classes
    ).checked()


def _index(file: Path, wnids: list[str]) -> dict[str, tuple[int, str]]:
    """wnid -> class id and name."""
    if not file.is_file():
        if len(wnids) != 1000:
            raise DataError(
                f"Found {len(wnids)} class folders and no {file}. Without that index all 1000 "
                "classes of ImageNet must be there, since their order makes the ids."
            )
        return {wnid: (i, wnid) for i, wnid in enumerate(wnids)}
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
        known = {wnid: (int(index), name) for index, (wnid, name) in body.items()}
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {error.lineno}: no valid JSON: {error.msg}.") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f'{file} is not {{"0": ["n01440764", "tench"], ...}}: {error}.') from error
    ids = sorted(index for index, _ in known.values())
    if len(known) != len(body) or ids != list(range(len(body))):
        raise DataError(
            f"{file} numbers {len(body)} classes, but not each WordNet id once from 0 to "
            f"{len(body) - 1}. Then names and ids do not fit together; mend the index."
        )
    return known


def class_item(name: str, file: Path, index: int) -> Item[int]:
    """An image file and its class."""
    return Item(name, file, partial(read_image, file), partial(_class, index), f"{index}")


def _class(index: int, size: Size) -> int:
    return index
