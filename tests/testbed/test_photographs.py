"""Photographs come with the packages, each once, with its terms."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from ttreg_interp.errors import DataError
from ttreg_interp.testbed import PHOTOGRAPHS, photograph_tensor, photographs, save_photographs


@pytest.fixture(scope="module")
def images():
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    return photographs(48)


def test_every_photograph_is_a_square_rgb_image_with_a_licence_and_a_credit(images):
    assert list(images) == list(PHOTOGRAPHS)
    assert len(images) == 16
    assert {(image.mode, image.size) for image in images.values()} == {("RGB", (48, 48))}
    assert all(origin.licence and origin.credit for origin in PHOTOGRAPHS.values())


def test_no_photograph_occurs_twice(images):
    values = torch.stack([torch.from_numpy(np.array(image)) for image in images.values()])
    apart = torch.cdist(values.flatten(1).float(), values.flatten(1).float())
    apart.fill_diagonal_(torch.inf)
    assert apart.min() > 48 * 10  # ten grey levels and more in every value


def test_photographs_are_read_from_the_packages_and_not_fetched(monkeypatch, images):
    from skimage.data import _fetchers

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("tried to download")

    monkeypatch.setattr(_fetchers, "_image_fetcher", None)
    monkeypatch.setattr("socket.socket.connect", refuse)
    assert photographs(16).keys() == images.keys()


def test_the_tensor_holds_the_normalised_images(images):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    pixels = photograph_tensor(48, mean, std)
    for channel in range(3):
        expected = np.array(images["coffee"])[:, :, channel] / 255
        expected = (expected - mean[channel]) / std[channel]
        index = list(PHOTOGRAPHS).index("coffee")
        np.testing.assert_allclose(pixels[index, channel].numpy(), expected, atol=1e-6)


def test_saving_makes_a_folder_of_png_files_and_gives_credit(images, tmp_path):
    files = save_photographs(tmp_path / "new" / "folder", size=48)
    assert [file.stem for file in files] == list(PHOTOGRAPHS)
    with Image.open(files[0]) as saved:
        assert np.array_equal(np.array(saved), np.array(images["china"]))
    credit = (tmp_path / "new" / "folder" / "CREDITS.txt").read_text(encoding="utf-8")
    assert "china.png: danielbuechele on Flickr (CC BY 2.0)" in credit


@pytest.mark.parametrize(
    ("module", "package"), [("skimage", "scikit-image"), ("sklearn.datasets", "scikit-learn")]
)
def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch, module, package):
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"{package}, which is not installed") as error:
        photographs()
    assert "pip install 'ttreg-interp[demo]'" in str(error.value)


def test_a_size_below_one_is_refused():
    with pytest.raises(DataError, match="0 px were asked for; a size is at least 1 px"):
        photographs(0)
