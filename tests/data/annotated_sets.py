"""Tiny sets of annotated images, written exactly as the published ones lie on disk."""

import json
from pathlib import Path

import numpy as np
from image_files import plain
from PIL import Image


def picture(file: Path, width: int = 12, height: int = 8) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (90, 120, 30)).save(file)
    return file


def voc(root: Path, year: str = "2007", split: str = "trainval", **notes: str) -> Path:
    """`notes`: image id -> the objects of its annotation as XML, or the whole text if it has no tag."""
    base = root / "VOCdevkit" / f"VOC{year}"
    for folder in ("Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for name, objects in notes.items():
        picture(base / "JPEGImages" / f"{name}.jpg")
        body = (
            f"<annotation>\n<filename>{name}.jpg</filename>\n"
            f"<size><width>12</width><height>8</height><depth>3</depth></size>\n{objects}\n</annotation>\n"
        )
        (base / "Annotations" / f"{name}.xml").write_text(body)
    (base / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(notes) + "\n")
    return root


def voc_object(x0: object, y0: object, x1: object, y1: object) -> str:
    edges = zip(("xmin", "ymin", "xmax", "ymax"), (x0, y0, x1, y1), strict=True)
    box = "".join(f"<{name}>{edge}</{name}>" for name, edge in edges)
    return (
        f"<object>\n<name>cat</name>\n<difficult>1</difficult>\n<bndbox>{box}</bndbox>\n</object>"
    )


def coco(root: Path, notes: list[dict], images: int = 2, split: str = "val2017") -> Path:
    listed = []
    for i in range(1, images + 1):
        file = picture(root / split / f"{i:012}.jpg")
        listed.append({"id": i, "file_name": file.name, "height": 8, "width": 12})
    body = {"images": listed, "annotations": notes, "categories": [{"id": 1, "name": "person"}]}
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(body))
    return root


def coco_note(number: int, image: int, bbox: list[float], crowd: int = 0) -> dict:
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": bbox,
        "area": 1.0,
        "iscrowd": crowd,
    }


def yolo(root: Path, **texts: str) -> Path:
    for name, text in texts.items():
        picture(root / "images" / f"{name}.jpg")
        (root / "boxes").mkdir(exist_ok=True)
        (root / "boxes" / f"{name}.txt").write_text(text)
    (root / "box_classes.yaml").write_text("names:\n  0: person\n  1: cat\n")
    return root


def mask(file: Path, values: list[list[int]] | np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(file)
    return file


def gtsegs(file: Path, masks: list[np.ndarray]) -> Path:
    """MATLAB 7.3: cell arrays of references, every array transposed."""
    import h5py

    with h5py.File(file, "w") as data:
        refs = {"img": [], "gt": []}
        for i, one in enumerate(masks):
            image = np.full((3, *one.T.shape), 10 * i, dtype=np.uint8)
            refs["img"].append(data.create_dataset(f"#refs#/img{i}", data=image).ref)
            inner = data.create_dataset(f"#refs#/mask{i}", data=one.T.astype(np.uint8))
            cell = data.create_dataset(f"#refs#/cell{i}", (1, 1), dtype=h5py.ref_dtype)
            cell[0, 0] = inner.ref
            refs["gt"].append(cell.ref)
        for name, found in refs.items():
            table = data.create_dataset(f"value/{name}", (len(found), 1), dtype=h5py.ref_dtype)
            for i, ref in enumerate(found):
                table[i, 0] = ref
    return file


def nyu(root: Path, images: int = 3) -> Path:
    import h5py
    from scipy.io import savemat

    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as data:
        colours = np.arange(images, dtype=np.uint8)[:, None, None, None]
        data["images"] = np.broadcast_to(colours, (images, 3, 12, 8))
        data["depths"] = np.arange(images * 96, dtype=np.float32).reshape(images, 12, 8)
    numbers = {"trainNdxs": np.array([[1], [2]]), "testNdxs": np.array([[images]])}
    savemat(root / "splits.mat", numbers)
    return root


def nyu_list(root: Path, *lines: str) -> Path:
    picture(root / "kitchen" / "rgb_0.jpg")
    depth = (np.arange(96).reshape(8, 12) * 100).astype(np.uint16)
    Image.fromarray(depth).save(root / "kitchen" / "depth_0.png")
    file = root / "files.txt"
    file.write_text("\n".join(lines) + "\n")
    return file


def imagenet(root: Path, wnids: dict[str, int], index: bool = True) -> Path:
    for wnid, count in wnids.items():
        for i in range(count):
            plain(root / "val" / wnid / f"{wnid}_{i}.JPEG")
    if index:
        body = {str(i): [wnid, f"class of {wnid}"] for i, wnid in enumerate(sorted(wnids))}
        (root / "imagenet_class_index.json").write_text(json.dumps(body))
    return root
