"""Uploads: what is taken, and what gets a message."""

import struct
import zlib

import pytest
from PIL import Image

from ttreg_interp.app import upload
from ttreg_interp.app.upload import read_upload
from ttreg_interp.errors import DataError


def png_of(width: int, height: int) -> bytes:
    """A PNG that says to be that large, and holds nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IEND", b"")


def test_an_image_is_read_as_rgb(tmp_path):
    Image.new("RGBA", (30, 20), (255, 0, 0, 255)).save(tmp_path / "<b>red.png")
    read = read_upload(tmp_path / "<b>red.png")
    assert (read.mode, read.size, read.getpixel((0, 0))) == ("RGB", (30, 20), (255, 0, 0))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("page.html", b"<script>", "A file .html is no image"),
        ("drawing.svg", b"<svg/>", "A file .svg is no image"),
        ("nothing", b"", "A file without suffix is no image"),
        ("text.png", b"not an image", "This file cannot be shown: no known image format"),
        ("empty.jpg", b"", "This file cannot be shown: an empty file"),
        ("cut.png", png_of(30, 20), "This file cannot be shown"),
        ("wide.png", png_of(9_000, 6_000), "This image has 9000 x 6000 pixels"),
        ("bomb.png", png_of(100_000, 100_000), "far too many pixels"),
    ],
)
def test_a_broken_or_huge_upload_gets_a_message(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        read_upload(tmp_path / name)
    assert "Allowed are images up to 20 MB and 50 megapixels." in str(raised.value)
    assert str(tmp_path) not in str(raised.value)


def test_a_file_that_is_too_long_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(upload, "MAX_MEGABYTES", 0.001)
    Image.effect_noise((64, 64), 50).save(tmp_path / "noise.png")
    with pytest.raises(DataError, match=r"This file has 0\.0 MB\. Allowed are images up to 0\.001"):
        read_upload(tmp_path / "noise.png")


def test_a_missing_file_gets_a_message(tmp_path):
    with pytest.raises(DataError, match="cannot be shown: no such file"):
        read_upload(tmp_path / "gone.png")
