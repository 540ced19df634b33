"""Whatever its kind, an image becomes upright 8-bit RGB, or a reason."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import bad_files, plain
from PIL import Image

from ttreg_interp.data import read_image
from ttreg_interp.errors import DataError


def values(file) -> np.ndarray:
    image = read_image(file)
    assert image.mode == "RGB"
    return np.array(image)


def palette(transparent: int | None) -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 250, 120, 10])
    image.putpixel((0, 0), 0)
    if transparent is not None:
        image.info["transparency"] = transparent
    return image


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("rgb.png", Image.new("RGB", (4, 4), (1, 2, 3)), (1, 2, 3)),
        ("grey.png", Image.new("L", (4, 4), 77), (77, 77, 77)),
        ("bit.png", Image.new("1", (4, 4), 1), (255, 255, 255)),
        ("rgba.png", Image.new("RGBA", (4, 4), (0, 0, 0, 255)), (0, 0, 0)),
        ("clear.png", Image.new("RGBA", (4, 4), (0, 0, 0, 0)), (255, 255, 255)),
        ("half.png", Image.new("RGBA", (4, 4), (255, 0, 0, 51)), (255, 204, 204)),
        ("grey_alpha.png", Image.new("LA", (4, 4), (0, 51)), (204, 204, 204)),
        ("palette.png", palette(None), (250, 120, 10)),
        ("palette_clear.png", palette(1), (255, 255, 255)),
        ("palette.gif", palette(None), (250, 120, 10)),
        ("cmyk.tif", Image.new("CMYK", (4, 4), (0, 255, 255, 0)), (255, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb_on_white(tmp_path, name, image, expected):
    image.save(tmp_path / name)
    assert tuple(values(tmp_path / name)[2, 2]) == expected


def test_a_cmyk_jpeg_keeps_its_colours(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(values(tmp_path / "cmyk.jpg").astype(int) - (255, 0, 0)).max() <= 3


@given(grey=st.lists(st.integers(0, 65535), min_size=4, max_size=4))
@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path_factory, kind, grey):
    file = tmp_path_factory.mktemp("grey") / f"grey.{kind}"
    Image.fromarray(np.array(grey, np.uint16).reshape(2, 2)).save(file)
    expected = np.round(np.array(grey) / 257).reshape(2, 2)
    assert np.array_equal(values(file), np.stack([expected] * 3, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path, orientation):
    """All eight files show one picture: red above blue, on a portrait page."""
    upright = Image.new("RGB", (4, 8), (0, 0, 255))
    upright.paste((255, 0, 0), (0, 0, 4, 4))
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = upright if stored is None else upright.transpose(stored)
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(values(tmp_path / "turned.png"), np.array(upright))


def test_the_first_image_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert tuple(values(tmp_path / "moving.gif")[0, 0]) == (255, 0, 0)


def test_the_extension_does_not_matter(tmp_path):
    plain(tmp_path / "photo.png").rename(tmp_path / "photo.jpg")
    assert tuple(values(tmp_path / "photo.jpg")[0, 0]) == (10, 200, 30)


def test_the_reason_is_given_for_every_bad_kind(tmp_path):
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(DataError) as error:
            read_image(tmp_path / name)
        assert reason in str(error.value), name
    with pytest.raises(DataError, match="no such file"):
        read_image(tmp_path / "gone.png")


def test_an_image_a_little_too_large_is_a_reason_and_no_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(DataError, match="more than 40 pixels"):
        read_image(plain(tmp_path / "large.png"))
