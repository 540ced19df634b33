"""Every data set of the paper in small, each as its publishers lay it out, below one root."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from .small import photograph

WNIDS = ("n01440764", "n01443537")


def picture(file: Path, number: int) -> Path:
    """A JPEG or PNG of 48 x 40 pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    photograph(number).save(file)
    return file


def imagenet(root: Path, count: int = 4) -> None:
    for split in ("train", "val"):
        for place, wnid in enumerate(WNIDS):
            for i in range(count):
                picture(root / split / wnid / f"{wnid}_{split}_{i}.JPEG", 10 * place + i)
    index = {str(place): [wnid, f"fish {place}"] for place, wnid in enumerate(WNIDS)}
    (root / "imagenet_class_index.json").write_text(json.dumps(index))


def ade20k(root: Path, count: int = 3) -> None:
    for split in ("training", "validation"):
        for i in range(count):
            picture(root / "images" / split / f"ADE_{i}.jpg", i)
            ids = np.ones((40, 48), dtype=np.uint8)
            ids[10:30, 8 * i : 8 * i + 20] = 2
            file = root / "annotations" / split / f"ADE_{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(ids).save(file)
    (root / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
        + "".join(f"{i}\t0.1\t1\t1\t0\tthing {i}\n" for i in range(1, 151))
    )


def nyu(root: Path, images: int = 6) -> None:
    import h5py
    from scipy.io import savemat

    root.mkdir(parents=True)
    shown = np.stack(
        [np.asarray(photograph(i)) for i in range(images)]
    )  # image, row, column, colour
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as data:
        data["images"] = shown.transpose(0, 3, 2, 1)
        data["depths"] = 1 + shown.mean(axis=3).transpose(0, 2, 1).astype(np.float32) / 64
    half = images // 2
    numbers = np.arange(1, images + 1)[:, None]
    savemat(root / "splits.mat", {"trainNdxs": numbers[:half], "testNdxs": numbers[half:]})


def imagenet_segmentation(file: Path, count: int = 3) -> None:
    """MATLAB 7.3: cell arrays of references, every array transposed."""
    import h5py

    with h5py.File(file, "w") as data:
        refs: dict[str, list] = {"img": [], "gt": []}
        for i in range(count):
            mask = np.zeros((40, 48), dtype=np.uint8)
            mask[5:25, 5 + i : 25] = 1
            shown = np.asarray(photograph(i)).T
            refs["img"].append(data.create_dataset(f"#refs#/img{i}", data=shown).ref)
            inner = data.create_dataset(f"#refs#/mask{i}", data=mask.T)
            cell = data.create_dataset(f"#refs#/cell{i}", (1, 1), dtype=h5py.ref_dtype)
            cell[0, 0] = inner.ref
            refs["gt"].append(cell.ref)
        for name, found in refs.items():
            table = data.create_dataset(f"value/{name}", (count, 1), dtype=h5py.ref_dtype)
            for i, ref in enumerate(found):
                table[i, 0] = ref


def voc(root: Path, year: str = "2007", count: int = 2) -> None:
    base = root / "VOCdevkit" / f"VOC{year}"
    for folder in ("Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True)
    names = [f"{year}_{i:06}" for i in range(count)]
    for i, name in enumerate(names):
        picture(base / "JPEGImages" / f"{name}.jpg", i)
        box = "<xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>30</ymax>"
        text = f"<annotation><object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
        (base / "Annotations" / f"{name}.xml").write_text(text)
    (base / "ImageSets" / "Main" / "trainval.txt").write_text("\n".join(names) + "\n")


def coco20k(root: Path, count: int = 2) -> None:
    files = [picture(root / "train2014" / f"COCO_train2014_{i:012}.jpg", i) for i in range(count)]
    body = {
        "images": [
            {"id": i, "file_name": file.name, "height": 40, "width": 48}
            for i, file in enumerate(files)
        ],
        "annotations": [
            {
                "id": i,
                "image_id": i,
                "category_id": 1,
                "bbox": [2.0, 2.0, 30.0, 20.0],
                "area": 600,
                "iscrowd": 0,
            }
            for i in range(count)
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2014.json").write_text(json.dumps(body))
    names = "".join(f"train2014/{file.name}\n" for file in files)
    (root / "coco_20k_filenames.txt").write_text(names)


def rta100(root: Path, marked: bool = True) -> None:
    for i, (real, text) in enumerate((("apple", "knife"), ("clock", "apple"), ("knife", "clock"))):
        name = f"label={real}_text={text}.png"
        picture(root / "data" / name, i)
        if marked:
            area = np.zeros((40, 48), dtype=np.uint8)
            area[8:20, 8:30] = 255
            (root / "areas").mkdir(exist_ok=True)
            Image.fromarray(area).save(root / "areas" / name)


def all_sets(root: Path) -> Path:
    """All of them, under the names of the paper's list."""
    root.mkdir(parents=True, exist_ok=True)
    imagenet(root / "imagenet")
    ade20k(root / "ADEChallengeData2016")
    nyu(root / "nyu")
    imagenet_segmentation(root / "gtsegs_ijcv.mat")
    voc(root / "voc", "2007")
    voc(root / "voc", "2012")
    coco20k(root / "coco")
    rta100(root / "rta100", marked=False)
    return root
