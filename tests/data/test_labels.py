"""Labels from a CSV file; faults are told with file and line."""

import pytest
import torch

from ttreg_interp.data import Label, images, read_labels
from ttreg_interp.errors import DataError

HEADER = "file,class_index,wnid,name\n"


@pytest.fixture
def write(tmp_path):
    def _write(text: str | bytes):
        file = tmp_path / "labels.csv"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return _write


def test_labels_are_found_by_path_or_by_name(write, tmp_path):
    labels = read_labels(
        write(HEADER + "a.jpg,4,n1,hammerhead\ndeep/a.jpg,1,n2,goldfish\nb.jpg,4,n1,hammerhead\n")
    )
    assert len(labels) == 3
    assert labels.of(tmp_path / "a.jpg") == Label(4, "hammerhead")
    assert labels.of(tmp_path / "deep" / "a.jpg") == Label(1, "goldfish")
    assert labels.of("elsewhere/b.jpg") == Label(4, "hammerhead")
    assert labels.names == {1: "goldfish", 4: "hammerhead"}
    assert torch.equal(labels.indices(["a.jpg", "b.jpg"]), torch.tensor([4, 4]))


def test_a_byte_order_mark_quotes_and_spaces_do_no_harm(write):
    labels = read_labels(
        write("\ufefffile,class_index,name\r\n"
              '"a, b.jpg", 7 ,"cock, the bird"\r\n')
    )  # fmt: skip
    assert labels.of("a, b.jpg") == Label(7, "cock, the bird")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column file, class_index, name among none. Needed are"),
        ("file,name\na,b\n", "line 1: no column class_index among file, name"),
        (HEADER, "labels.csv has a header and no label"),
        (HEADER + "a.jpg,1,n,x\nb.jpg,one,n,y\n", "line 3: class_index 'one' is no whole"),
        (HEADER + "a.jpg,-1,n,x\n", "line 2: class_index '-1' is no whole number from 0"),
        (HEADER + "a.jpg,1.0,n,x\n", "line 2: class_index '1.0' is no whole number"),
        (HEADER + "a.jpg,1\n", "line 2: file 'a.jpg' and name '' must both be filled in"),
        (HEADER + ",1,n,x\n", "line 2: file '' and name 'x' must both be filled in"),
        (HEADER + "a.jpg,1,n,x\na.jpg,1,n,x\n", "line 3: 'a.jpg' has a label already"),
        (HEADER + "a.jpg,1,n,x\nb.jpg,1,n,y\n", "line 3: class 1 is called 'y' here and 'x'"),
        (b"\xff\xfe", "labels.csv cannot be read as UTF-8 CSV"),
    ],
)
def test_a_fault_is_told_with_file_and_line(write, text, message):
    with pytest.raises(DataError, match=message) as error:
        read_labels(write(text))
    assert "labels.csv" in str(error.value)


def test_a_missing_label_file_is_told(tmp_path):
    with pytest.raises(DataError, match="none.csv cannot be read as UTF-8 CSV: .*No such file"):
        read_labels(tmp_path / "none.csv")


def test_an_image_without_label_is_told(write):
    labels = read_labels(write(HEADER + "a.jpg,1,n,x\n"))
    with pytest.raises(DataError, match="c.jpg has no label: .*labels.csv has 1 lines, none"):
        labels.indices(["a.jpg", "c.jpg"])


@pytest.mark.assets
def test_every_image_of_a_real_sample_has_a_label(assets):
    folder = images(assets / "imagenet_sample")
    labels = read_labels(assets / "imagenet_sample" / "labels.csv")
    assert len(folder) == len(labels) == 300
    indices = labels.indices(folder.paths)
    assert indices.min() >= 0
    assert indices.max() < 1000
    assert labels.of(folder.paths[0]).name == "goldfish"
