"""Datasets give the images that files would: torchvision's, Hugging Face's, tars, streams."""

import io
import tarfile

import datasets
import pytest
import torch
from image_files import folder_of, plain, to_tensor
from torchvision.datasets import FakeData
from torchvision.datasets import ImageFolder as TorchvisionFolder

from ttreg_interp.data import images, read_image
from ttreg_interp.errors import DataError

N = 11


@pytest.fixture(scope="module", autouse=True)
def quiet_and_offline(tmp_path_factory):
    cache = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    datasets.disable_progress_bars()
    yield
    datasets.config.HF_DATASETS_CACHE = cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images whose red value is their number, in the one class of a torchvision folder."""
    root = tmp_path_factory.mktemp("root")
    folder_of(root / "class", N)
    return root


@pytest.fixture(scope="module")
def columns(folder):
    """The same as a table of Hugging Face."""
    files = [str(path) for path in images(folder).paths]
    table = datasets.Dataset.from_dict({"picture": files, "label": [0] * N})
    return table.cast_column("picture", datasets.Image())


@pytest.fixture(scope="module")
def tars(folder, tmp_path_factory):
    """The same in two tars, six and five."""
    into = tmp_path_factory.mktemp("tars")
    paths = images(folder).paths
    for number, part in enumerate((paths[:6], paths[6:])):
        with tarfile.open(into / f"part-{number:03}.tar", "w") as tar:
            for path in part:
                tar.add(path, path.name)
    return into


def reds(source, **options) -> list[int]:
    options = {"batch_size": 4} | options
    batches = source.batches(to_tensor, **options)
    return [int(red) for b in batches for red in (b.pixels[:, 0, 0, 0] * 255).round()]


SOURCES = {
    "torchvision": lambda folder, columns, tars: TorchvisionFolder(folder),
    "PIL images in a list": lambda folder, columns, tars: [
        read_image(path) for path in images(folder).paths
    ],
    "Hugging Face": lambda folder, columns, tars: columns,
    "a stream": lambda folder, columns, tars: columns.to_iterable_dataset(num_shards=3),
    "a name": lambda folder, columns, tars: f"hf:{folder}:train",
    "tars by a star": lambda folder, columns, tars: tars / "part-*.tar",
    "tars by braces": lambda folder, columns, tars: f"{tars}/part-{{000..001}}.tar",
}


@pytest.fixture(params=SOURCES)
def source(request, folder, columns, tars):
    return SOURCES[request.param](folder, columns, tars)


def test_every_image_comes_once_in_order_on_every_pass(source):
    found = images(source)
    assert reds(found) == list(range(N))
    assert reds(found, workers=2) == list(range(N))


def test_a_limit_takes_the_first_and_a_seed_others(source):
    assert reds(images(source, limit=3)) == [0, 1, 2]
    drawn = [reds(images(source, limit=6, seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]
    assert all(len(set(some)) == 6 for some in drawn)
    assert len(images(source, limit=3)) == 3


def test_the_digest_tells_sets_apart_and_stays(source):
    digests = [images(source).digest() for _ in range(2)]
    assert digests[0] == digests[1]
    assert images(source, limit=4).digest() not in digests
    assert images(source, limit=4, seed=0).digest() != images(source, limit=4, seed=2).digest()


def test_paths_say_which_image_it_was(tars, columns):
    batch = next(iter(images(tars / "part-*.tar").batches(to_tensor, batch_size=2)))
    assert [path.name for path in batch.paths] == ["00", "01"]  # the keys of a WebDataset
    batch = next(iter(images(columns).batches(to_tensor, batch_size=2)))
    assert [path.as_posix() for path in batch.paths] == ["picture/0", "picture/1"]


def test_an_image_that_cannot_be_read_is_skipped_in_a_stream_as_in_a_folder(tmp_path):
    plain(tmp_path / "good.png", (7, 0, 0))
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        broken = tarfile.TarInfo("broken.png")
        broken.size = 5
        tar.addfile(broken, io.BytesIO(b"wrong"))
        tar.add(tmp_path / "good.png", "good.png")
    one_pass = images(tmp_path / "some.tar").batches(to_tensor)
    assert [len(batch.pixels) for batch in one_pass] == [1]
    assert [str(skipped) for skipped in one_pass.skipped] == ["broken: no known image format"]


def test_a_stream_in_parts_is_the_stream(columns, monkeypatch):
    from ttreg_interp.data import passes

    monkeypatch.setattr(passes, "AT_ONCE", 3)
    found = images(columns.to_iterable_dataset())
    assert [len(batch.pixels) for batch in found.batches(to_tensor, batch_size=4)] == [4, 4, 3]
    assert reds(found) == list(range(N))


def test_discovery_takes_any_of_them(columns):
    from tests.discovery.models import Push, hooked, marked_vit
    from ttreg_interp.discovery import FindConfig, find_register_neurons

    model = hooked(marked_vit(Push(layer=2, neuron=7, places=(0, 5))))
    model.preprocess = lambda image: torch.randn(
        3, 64, 64, generator=torch.Generator().manual_seed(image.getpixel((0, 0))[0])
    )
    config = FindConfig(evidence=False)
    stored, streamed = (
        find_register_neurons(model, images(source), config)
        for source in (columns, columns.to_iterable_dataset())
    )
    assert stored.by_layer() == streamed.by_layer() == {2: (7,)}
    assert stored.ranking == streamed.ranking
    assert stored.provenance["images_digest"] is not None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: "hf:only-a-name", "is not hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT"),
        (lambda f: f"hf:{f}/gone:train", "gone:train cannot be opened"),
        (lambda f: f / "gone-*.tar", "gone-.*tar cannot be opened"),
        (lambda f: 3, "or a dataset with a length and items; found int"),
        (lambda f: datasets.Dataset.from_dict({"a": [1]}), r"this dataset has 0 columns of images \(a\)"),
    ],
)  # fmt: skip
def test_what_is_no_set_of_images_is_refused(tmp_path, make, message):
    with pytest.raises(DataError, match=message):
        images(make(tmp_path))


def test_a_dataset_with_a_transform_is_told_what_to_do():
    one_pass = images(FakeData(3, transform=lambda image: torch.zeros(3, 8, 8))).batches(to_tensor)
    with pytest.raises(DataError, match="no PIL image but Tensor: give the dataset without its tr"):
        list(one_pass)


def test_a_stream_without_a_limit_has_no_length(columns):
    with pytest.raises(DataError, match="is a stream, whose length is not known. Give limit"):
        len(images(columns.to_iterable_dataset()))
