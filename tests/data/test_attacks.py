"""Written attacks: the same pixels each time, any text, place and size, and a mark where the text is."""

import annotated_sets as write
import numpy as np
import pytest
import torch
from image_files import plain
from PIL import Image

from ttreg_interp.data.attacks import Typography, attacked
from ttreg_interp.data.open import open_data
from ttreg_interp.errors import DataError

GREY = Image.new("RGB", (200, 120), (90, 120, 30))


def changed(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy((np.asarray(image) != np.asarray(GREY)).any(axis=2))


@pytest.mark.parametrize("text", ["iron", "hot dog", "iPod", "Żółw", "Ωμέγα", "ёж", "one\ntwo"])
@pytest.mark.parametrize("height", [0.1, 0.5])
def test_the_mark_is_the_label_and_the_label_is_where_it_was_wanted(text, height):
    written, area = Typography(height, x=1.0, y=0.0).write(GREY, text)
    assert torch.equal(changed(written), area)
    rows, columns = area.nonzero(as_tuple=True)
    assert int(rows.min()) == 0 and int(columns.max()) == 199
    assert written.size == GREY.size and changed(GREY).sum() == 0
    dark = np.asarray(written.convert("L"))[area.numpy().astype(bool)] < 64
    assert 0.02 < dark.mean() < 0.6  # black letters on white


def test_a_larger_label_covers_more_and_a_second_line_is_below_the_first():
    small, large = (Typography(height, 0.0, 0.0).write(GREY, "iron")[1] for height in (0.1, 0.3))
    assert small.sum() < large.sum()
    lines = Typography(0.1, 0.0, 0.0).write(GREY, "iron\niron")[1]
    assert lines.any(dim=1).sum() > 1.5 * small.any(dim=1).sum()
    assert lines.any(dim=0).sum() == small.any(dim=0).sum()


def test_places_are_drawn_by_seed_and_number_alone():
    how = Typography(seed=5)
    first, again = how.write(GREY, "iron", 3), how.write(GREY, "iron", 3)
    assert torch.equal(first[1], again[1])
    places = {tuple(how.write(GREY, "iron", i)[1].nonzero()[0].tolist()) for i in range(9)}
    assert len(places) > 5
    assert not torch.equal(first[1], Typography(seed=6).write(GREY, "iron", 3)[1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Typography().write(GREY, " "), "found an empty one"),
        (lambda: Typography().write(GREY, "猫"), "is no letter of DejaVu Sans"),
        (lambda: Typography().write(Image.new("RGB", (9, 9)), "long text"), "does not fit legibly"),
        (lambda: Typography(height=0.001), "0.02 to 1 of the image high"),
        (lambda: Typography(x=2.0), "x is a share from 0 to 1"),
    ],
)
def test_what_cannot_be_written_is_refused(call, words):
    with pytest.raises(DataError, match=words):
        call()


@pytest.fixture
def photos(tmp_path):
    """Three images of classes 1, 4 and 4; the other ids have no name."""
    for name in "abc":
        plain(tmp_path / f"{name}.png", size=120)
    lines = "a.png,1,cat\nb.png,4,iron\nc.png,4,iron\n"
    (tmp_path / "labels.csv").write_text(f"file,class_index,name\n{lines}")
    return f"labels:{tmp_path}"


def test_the_written_name_is_that_of_another_class_that_occurs(photos):
    for item in open_data(f"attacked+{photos}").items:
        image, target = item.read()
        assert {target.real, target.text} == {"cat", "iron"}
        white = torch.from_numpy((np.asarray(image) == 255).all(axis=2))
        assert white.any() and not (white & ~target.area).any()


def test_place_size_and_words_can_be_set_in_the_name_of_the_data(photos):
    how = Typography(0.3, 0.0, 1.0, seed=2)
    named = open_data(f"attacked[height=0.3,x=0,y=1,seed=2,texts=iPod/pizza]+{photos}")
    direct = attacked(open_data(photos), ["iPod", "pizza"], how)
    for mine, theirs in zip(named.items, direct.items, strict=True):
        assert mine.read()[1].text in ("iPod", "pizza")
        assert mine.read()[0].tobytes() == theirs.read()[0].tobytes()
    assert named.digest() == direct.digest() != open_data(f"attacked+{photos}").digest()
    with pytest.raises(
        DataError, match=r"attacked\[size=3\]: 'size=3' is none of texts=A/B, height="
    ):
        open_data(f"attacked[size=3]+{photos}")


def test_a_mark_of_rta100_without_its_photograph_is_told(tmp_path):
    write.picture(tmp_path / "data" / "label=apple_text=iron.png")
    write.mask(tmp_path / "areas" / "label=pear_text=iron.png", np.zeros((8, 12)))
    data = open_data(f"rta100:{tmp_path}")
    assert [f.reason for f in data.faults] == ["no image for this mark"]
