"""Image files of every kind, good and bad."""

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIZE = 8


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def plain(file: Path, colour: tuple[int, int, int] = (10, 200, 30), size: int = SIZE) -> Path:
    """One colour."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(file)
    return file


def folder_of(folder: Path, count: int) -> Path:
    """PNG files 00.png, 01.png, ..., whose red value is their number."""
    for number in range(count):
        plain(folder / f"{number:02}.png", (number, 0, 0))
    return folder


def truncated(file: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:1000])
    return file


def bomb(file: Path) -> Path:
    """A few bytes that claim to be 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return file


def bad_files(folder: Path) -> dict[str, str]:
    """One file of each bad kind; name -> part of the reason why it cannot be read."""
    folder.mkdir(exist_ok=True)
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("this is no photograph")
    (folder / "folder.png").mkdir()
    truncated(folder / "cut.jpg")
    truncated(folder / "cut.png")
    bomb(folder / "bomb.png")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(folder / "float.tif")
    Image.fromarray(np.full((4, 4), 1_000_000, np.int32)).save(folder / "wide.tif")
    return {
        "empty.png": "an empty file (0 bytes)",
        "text.jpg": "no known image format",
        "folder.png": "a folder, not a file",
        "cut.jpg": "truncated",
        "cut.png": "cannot be decoded",
        "bomb.png": "the limit of PIL.Image.MAX_IMAGE_PIXELS",
        "float.tif": "floating-point values have no agreed white",
        "wide.tif": "32-bit values (1000000 to 1000000) have no agreed white",
    }
