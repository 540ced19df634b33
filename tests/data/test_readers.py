"""Readers of published formats: what is there is read exactly, what is wrong is told with its place."""

import json
import shutil

import annotated_sets as write
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from ttreg_interp.data.annotated import Attack, Depth, Mask, Objects
from ttreg_interp.data.open import FORMATS, open_data
from ttreg_interp.errors import DataError


def boxes(data):
    return {item.name: item.read()[1].boxes.tolist() for item in data.items}


# ------------------------------------------------------------------ objects


@pytest.mark.parametrize("year", ["2007", "2012"])
def test_boxes_of_voc_count_from_zero_and_exclude_the_far_edge(tmp_path, year):
    two = write.voc_object(1, 1, 12, 8) + write.voc_object(3, 2, 4, 5)
    write.voc(tmp_path, year, a=two, b=write.voc_object(5, 5, 6, 6))
    data = open_data(f"voc{year}:{tmp_path}")
    assert data.kind is Objects and not data.faults
    assert boxes(data) == {"a": [[0, 0, 12, 8], [2, 1, 4, 5]], "b": [[4, 4, 6, 6]]}


def test_what_is_wrong_with_voc_is_told_with_file_and_line(tmp_path):
    write.voc(
        tmp_path,
        good=write.voc_object(1, 1, 2, 2),
        half=write.voc_object(1, 1, 2, 2) + "\n<object>\n<name>cat</name>\n</object>",
        turned=write.voc_object(9, 1, 2, 2),
        empty="",
        broken="<object>",
    )
    data = open_data(f"voc2007:{tmp_path}")
    assert data.names == ("good", "half")
    told = {f.file.stem: (f.line, f.reason) for f in data.faults}
    assert told["half"] == (9, "an object without xmin, ymin, xmax and ymax")
    assert told["turned"][0] == 4 and "without area" in told["turned"][1]
    assert told["empty"] == (None, "no object; corloc is undefined there")
    assert told["broken"][0] == 5 and "no valid XML" in told["broken"][1]


def test_a_voc_image_of_another_size_and_a_box_outside_are_told(tmp_path):
    inside = write.voc_object(1, 1, 12, 8)
    write.voc(tmp_path, a=inside, b=inside + write.voc_object(2, 2, 30, 8))
    write.picture(tmp_path / "VOCdevkit" / "VOC2007" / "JPEGImages" / "a.jpg", 8, 12)
    data = open_data(f"voc2007:{tmp_path}")
    assert [f.reason for f in data.faults] == [
        "a box outside its image of 8 x 12: [2.0, 2.0, 30.0, 8.0]"
    ]
    with pytest.raises(DataError, match="has 12 x 8 pixels; its annotation says 8 x 12"):
        data.items[0].read()


def test_a_tag_in_a_comment_costs_the_line_alone(tmp_path):
    write.voc(
        tmp_path,
        a="<!-- <object> -->" + write.voc_object(9, 1, 2, 2),
        b=write.voc_object(1, 1, 2, 2),
    )
    (fault,) = open_data(f"voc2007:{tmp_path}").faults
    assert fault.line is None and "without area" in fault.reason


def test_boxes_of_coco_are_those_of_pycocotools_without_crowds(tmp_path):
    notes = [
        write.coco_note(1, 1, [1.0, 2.0, 3.0, 4.0]),
        write.coco_note(2, 1, [0.0, 0.0, 12.0, 8.0], crowd=1),
        write.coco_note(3, 2, [2.5, 0.0, 1.5, 2.0]),
    ]
    write.coco(tmp_path, notes)
    data = open_data(f"coco:{tmp_path}")
    index = COCO(str(tmp_path / "annotations" / "instances_val2017.json"))
    for item, image in zip(data.items, index.getImgIds(), strict=True):
        expected = [note["bbox"] for note in index.loadAnns(index.getAnnIds(image, iscrowd=0))]
        sides = [[x, y, x + w, y + h] for x, y, w, h in expected]
        assert item.read()[1].boxes.tolist() == sides


def test_what_is_wrong_with_coco_is_told(tmp_path):
    notes = [
        write.coco_note(1, 1, [1.0, 2.0, 0.0, 4.0]),
        write.coco_note(2, 2, [1.0, 2.0, 3.0, 4.0]),
        write.coco_note(3, 3, [1.0, 2.0, 3.0, 4.0]),
        write.coco_note(4, 4, [1.0, 2.0, 3.0, 4.0], crowd=1),
        write.coco_note(5, 77, [1.0, 2.0, 3.0, 4.0]),
    ]
    write.coco(tmp_path, notes, images=4)
    (tmp_path / "val2017" / "000000000003.jpg").unlink()
    data = open_data(f"coco:{tmp_path}")
    assert data.names == ("000000000002.jpg",)
    told = "\n".join(map(str, data.faults))
    for words in (
        "annotation 5 is of image 77, which is not listed",
        "annotation 1: bbox [1.0, 2.0, 0.0, 4.0]",
        "000000000003.jpg: no such image",
        "000000000004.jpg has no object besides crowds",
    ):
        assert words in told


def test_images_that_coco_lists_badly_are_told(tmp_path):
    notes = [write.coco_note(i, i, [1.0, 2.0, 3.0, 4.0]) for i in (1, 2)]
    notes.append(write.coco_note(3, 1, [1.0, 2.0, 30.0, 4.0]))
    write.coco(tmp_path, notes)
    file = tmp_path / "annotations" / "instances_val2017.json"
    body = json.loads(file.read_text())
    body["images"].append({**body["images"][0], "id": 8})
    del body["images"][1]["height"]
    file.write_text(json.dumps(body))
    data = open_data(f"coco:{tmp_path}")
    assert data.names == ("000000000001.jpg",)
    assert [fault.reason for fault in data.faults] == [
        "image 2 has no height",
        "image 8 is the second one called 000000000001.jpg",
        "annotation 3: bbox [1.0, 2.0, 30.0, 4.0] leaves its image of 8 x 12",
    ]


def test_an_image_of_another_size_than_its_annotation_is_refused_when_read(tmp_path):
    write.coco(tmp_path, [write.coco_note(1, 1, [1.0, 2.0, 3.0, 4.0])], images=1)
    write.picture(tmp_path / "val2017" / "000000000001.jpg", 20, 8)
    with pytest.raises(DataError, match="has 8 x 20 pixels; its annotation says 8 x 12"):
        open_data(f"coco:{tmp_path}").items[0].read()


def test_coco20k_takes_the_listed_images_and_tells_of_the_missing(tmp_path):
    notes = [write.coco_note(i, i, [1.0, 2.0, 3.0, 4.0]) for i in (1, 2)]
    write.coco(tmp_path, notes, split="train2014")
    (tmp_path / "coco_20k_filenames.txt").write_text("train2014/000000000002.jpg\nno.jpg\n")
    data = open_data(f"coco20k:{tmp_path}")
    assert data.names == ("000000000002.jpg",)
    assert [(f.line, f.reason) for f in data.faults] == [
        (2, "no.jpg is not in instances_train2014.json")
    ]


def test_a_damaged_json_is_told_with_its_line(tmp_path):
    write.coco(tmp_path, [])
    (tmp_path / "annotations" / "instances_val2017.json").write_text('{"images": [],\n oops')
    with pytest.raises(DataError, match=r"instances_val2017.json, line 2: no valid JSON"):
        open_data(f"coco:{tmp_path}")


def test_boxes_of_yolo_are_shares_of_the_image(tmp_path):
    write.yolo(tmp_path, a="1 0.5 0.5 0.5 0.25\n", b="0 0.5 x 1 1\n\n0 0.25 0.5 0.5 1\n", c="")
    data = open_data(f"yolo:{tmp_path}")
    assert boxes(data) == {"a.jpg": [[3, 3, 9, 5]], "b.jpg": [[0, 0, 6, 8]]}
    assert [(f.file.name, f.line) for f in data.faults] == [("b.txt", 1), ("c.txt", None)]
    assert data.classes == ("person", "cat")


def test_annotations_without_an_image_are_told(tmp_path):
    write.yolo(tmp_path, a="1 0.5 0.5 0.5 0.25\n")
    (tmp_path / "boxes" / "gone.txt").write_text("1 0.5 0.5 0.5 0.25\n")
    write.mask(tmp_path / "semantic_masks" / "a.png", np.ones((8, 12)))
    write.mask(tmp_path / "semantic_masks" / "gone.png", np.ones((8, 12)))
    told = {
        f"{kind}:{tmp_path}": open_data(f"{kind}:{tmp_path}").faults for kind in ("yolo", "masks")
    }
    assert [[(f.file.name, f.reason) for f in faults] for faults in told.values()] == [
        [("gone.txt", "no image for these boxes")],
        [("gone.png", "no image for this mask")],
    ]


def test_presence_tells_images_with_and_without_a_class(tmp_path):
    write.yolo(tmp_path, a="1 0.5 0.5 0.5 0.25\n", b="0 0.5 0.5 1 1\n", c="")
    data = open_data(f"presence:{tmp_path}#cat")
    assert [item.read()[1] for item in data.items] == [1, 0, 0]
    with pytest.raises(DataError, match="no class 'dog'"):
        open_data(f"presence:{tmp_path}#dog")


# ------------------------------------------------------------------ masks


def test_ade20k_ignores_other_and_counts_classes_from_zero(tmp_path):
    write.picture(tmp_path / "images" / "validation" / "a.jpg", 3, 2)
    write.picture(tmp_path / "images" / "validation" / "b.jpg", 3, 2)
    write.mask(tmp_path / "annotations" / "validation" / "a.png", [[0, 1, 150], [2, 0, 3]])
    data = open_data(f"ade20k:{tmp_path}")
    assert data.kind is Mask and len(data.classes) == 150
    assert data.items[0].read()[1].ids.tolist() == [[255, 0, 149], [1, 255, 2]]
    assert [f.reason for f in data.faults] == ["no mask for the image b.jpg"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([[0, 151, 0], [0, 0, 0]], "id 151 is no class; they are 1 .. 150"),
        ([[0, 1]], "a mask of 1 x 2 pixels for an image of 2 x 3"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_when_read(tmp_path, values, words):
    write.picture(tmp_path / "images" / "validation" / "a.jpg", 3, 2)
    file = write.mask(tmp_path / "annotations" / "validation" / "a.png", values)
    with pytest.raises(DataError, match=f"{file}: .*{words}"):
        open_data(f"ade20k:{tmp_path}").items[0].read()


def test_a_truncated_mask_is_refused_when_read(tmp_path):
    write.picture(tmp_path / "images" / "validation" / "a.jpg", 200, 200)
    noise = np.random.default_rng(0).integers(0, 150, (200, 200))
    file = write.mask(tmp_path / "annotations" / "validation" / "a.png", noise)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DataError, match="cannot be read as a mask"):
        open_data(f"ade20k:{tmp_path}").items[0].read()


def test_a_mask_with_transparency_is_no_mask(tmp_path):
    write.picture(tmp_path / "images" / "validation" / "a.jpg", 3, 2)
    file = tmp_path / "annotations" / "validation" / "a.png"
    file.parent.mkdir(parents=True)
    Image.new("LA", (3, 2)).save(file)
    with pytest.raises(DataError, match="an image of mode LA holds no class ids"):
        open_data(f"ade20k:{tmp_path}").items[0].read()


def test_imagenet_s_reads_red_and_green_and_keeps_other_as_background(tmp_path):
    write.picture(tmp_path / "validation" / "n01440764" / "x.JPEG", 3, 1)
    ids = np.array([[0, 300, 1000]])
    rgb = np.stack([ids % 256, ids // 256, np.zeros_like(ids)], axis=-1)
    write.mask(tmp_path / "validation-segmentation" / "n01440764" / "x.png", rgb)
    found = open_data(f"imagenet-s:{tmp_path}").items[0].read()[1]
    assert found.ids.tolist() == [[0, 300, 1000]] and found.ignore == 1000


def test_imagenet_segmentation_follows_the_references_of_its_matlab_file(tmp_path):
    masks = [np.eye(4, 6), np.ones((5, 3))]
    data = open_data(f"imagenet-segmentation:{write.gtsegs(tmp_path / 'gtsegs_ijcv.mat', masks)}")
    for i, (item, expected) in enumerate(zip(data.items, masks, strict=True)):
        image, found = item.read()
        assert image.size == expected.shape[::-1] and image.getpixel((0, 0)) == (10 * i,) * 3
        assert torch.equal(found.ids, torch.from_numpy(expected).long())


def test_a_truncated_matlab_file_is_refused(tmp_path):
    file = write.gtsegs(tmp_path / "gtsegs_ijcv.mat", [np.eye(4)])
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        open_data(f"imagenet-segmentation:{file}")


# ------------------------------------------------------------------ depth


@pytest.mark.parametrize(("split", "expected"), [("train", [0, 1]), ("test", [2])])
def test_nyu_turns_what_matlab_stores_columns_first(tmp_path, split, expected):
    data = open_data(f"nyu:{write.nyu(tmp_path)}#{split}")
    assert data.kind is Depth
    for number, item in zip(expected, data.items, strict=True):
        image, depth = item.read()
        assert image.size == (12, 8) and image.getpixel((0, 0)) == (number,) * 3
        stored = torch.arange(number * 96, number * 96 + 96).float().view(12, 8)
        assert torch.equal(depth.metres, stored.T)


def test_nyu_as_a_list_has_millimetres_and_tells_of_bad_lines(tmp_path):
    good = "/kitchen/rgb_0.jpg /kitchen/depth_0.png 518.8579"
    bad = "kitchen/rgb_0.jpg None 518.8579", "kitchen/rgb_0.jpg kitchen/depth_9.png 518.8579"
    data = open_data(f"nyu:{write.nyu_list(tmp_path, good, *bad)}")
    assert data.items[0].read()[1].metres[0, :3].tolist() == pytest.approx([0, 0.1, 0.2])
    assert [fault.line for fault in data.faults] == [2, 3]


def test_depth_in_eight_bits_is_of_another_unit_and_refused(tmp_path):
    data = open_data(f"nyu:{write.nyu_list(tmp_path, 'kitchen/rgb_0.jpg kitchen/depth_0.png')}")
    Image.new("L", (12, 8), 9).save(tmp_path / "kitchen" / "depth_0.png")
    with pytest.raises(DataError, match="of mode L; depths are 16-bit grey, in millimetres"):
        data.items[0].read()


# ------------------------------------------------------------------ classes


def test_imagenet_takes_ids_from_its_index(tmp_path):
    write.imagenet(tmp_path, {"n02": 1, "n01": 2})
    (tmp_path / "val" / "n09").mkdir()
    (tmp_path / "val" / "n01" / "notes.txt").write_text("")
    data = open_data(f"imagenet:{tmp_path}")
    assert [(i.name, i.read()[1]) for i in data.items] == [
        ("n01/n01_0.JPEG", 0),
        ("n01/n01_1.JPEG", 0),
        ("n02/n02_0.JPEG", 1),
    ]
    assert data.classes == ("class of n01", "class of n02")
    assert sorted(f.file.name for f in data.faults) == ["n09", "notes.txt"]


def test_classes_of_the_index_without_a_folder_are_told(tmp_path):
    write.imagenet(tmp_path, {"n01": 1, "n02": 1})
    shutil.rmtree(tmp_path / "val" / "n01")
    data = open_data(f"imagenet:{tmp_path}")
    assert [f.reason for f in data.faults] == [
        "1 classes of the index have no folder, the first is n01"
    ]
    assert [item.read()[1] for item in data.items] == [1]


@pytest.mark.parametrize(
    "index", [{"0": ["n01", "a"], "2": ["n02", "b"]}, {"0": ["n01", "a"], "1": ["n01", "b"]}]
)
def test_an_index_that_skips_or_repeats_is_refused(tmp_path, index):
    write.imagenet(tmp_path, {"n01": 1, "n02": 1})
    (tmp_path / "imagenet_class_index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="not each WordNet id once from 0 to 1"):
        open_data(f"imagenet:{tmp_path}")


def test_another_annotation_of_the_same_images_has_another_digest(tmp_path):
    write.plain(tmp_path / "a.png")
    found = []
    for index in (3, 4):
        (tmp_path / "labels.csv").write_text(f"file,class_index,name\na.png,{index},cat\n")
        found.append(open_data(f"labels:{tmp_path}").digest())
    assert found[0] != found[1]


def test_fewer_class_folders_without_an_index_are_refused(tmp_path):
    write.imagenet(tmp_path, {"n01": 1}, index=False)
    with pytest.raises(DataError, match="Found 1 class folders and no .*imagenet_class_index.json"):
        open_data(f"imagenet:{tmp_path}")


def test_a_folder_with_labels_tells_of_files_and_lines_without_partner(tmp_path):
    for name in ("a.png", "b.png"):
        write.plain(tmp_path / name)
    (tmp_path / "labels.csv").write_text("file,class_index,name\na.png,3,cat\ngone.png,1,dog\n")
    data = open_data(f"labels:{tmp_path}")
    assert [(i.name, i.read()[1]) for i in data.items] == [("a.png", 3)]
    assert {f.file.name: f.reason for f in data.faults} == {
        "labels.csv": "no line for the image b.png",
        "gone.png": "no such image; labels.csv names it",
    }


# ------------------------------------------------------------------ attacks


def test_rta100_reads_the_words_from_the_name_and_the_area_where_it_lies(tmp_path):
    folder = tmp_path / "ours" / "data"
    write.picture(folder / "label=apple_text=iron.png")
    write.picture(folder / "label=hot dog_text=tree.png")
    write.picture(folder / "other.png")
    marked = np.zeros((8, 12))
    marked[2:4, 5:9] = 255
    write.mask(tmp_path / "ours" / "areas" / "label=apple_text=iron.png", marked)
    data = open_data(f"rta100:{tmp_path}")
    apple, dog = (item.read()[1] for item in data.items)
    assert data.kind is Attack and (apple.real, apple.text) == ("apple", "iron")
    assert torch.equal(apple.area, torch.from_numpy(marked > 0))
    assert (dog.real, dog.text, dog.area) == ("hot dog", "tree", None)
    assert [f.file.name for f in data.faults] == ["other.png"]


# ------------------------------------------------------------------ all


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "imagenet-segmentation"])
def test_an_empty_folder_is_refused_by_every_reader(tmp_path, name):
    with pytest.raises(DataError, match=str(tmp_path)):
        open_data(f"{name}:{tmp_path}")


def test_a_path_that_is_not_there_is_told_with_what_should_be(tmp_path):
    with pytest.raises(DataError, match="does not exist. 'coco' expects there: SPLIT/"):
        open_data(f"coco:{tmp_path / 'no'}")


def test_an_unreadable_image_is_told_with_its_file(tmp_path):
    write.yolo(tmp_path, a="1 0.5 0.5 0.5 0.25\n")
    (tmp_path / "images" / "a.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a.jpg: no known image format"):
        open_data(f"yolo:{tmp_path}").items[0].read()


def test_a_subset_is_drawn_in_order_and_the_same_each_time(tmp_path):
    write.yolo(tmp_path, **{f"i{n}": "0 0.5 0.5 1 1\n" for n in range(6)})
    data = open_data(f"yolo:{tmp_path}")
    assert data.take(2).names == ("i0.jpg", "i1.jpg")
    drawn = data.take(3, seed=1).names
    assert drawn == tuple(sorted(drawn)) == data.take(3, seed=1).names
    assert data.take(99) is data
    assert data.take(2).digest() != data.digest()


@pytest.mark.assets
def test_the_coco_images_at_hand_are_read_whole(assets):
    things = open_data(f"yolo:{assets / 'coco_val'}")
    masks = open_data(f"masks:{assets / 'coco_val'}")
    assert len(things) == len(masks) == 64 and not things.faults and not masks.faults
    image, found = masks.items[0].read()
    assert found.ids.shape == (image.height, image.width)
    raw = np.asarray(Image.open(assets / "coco_val/semantic_masks/000000000139.png"))
    assert (found.ids == 0).sum() == (raw == 1).sum()
