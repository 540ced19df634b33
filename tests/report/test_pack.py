"""Packing loses nothing of codes, and of floats what it says; unpacked here by its definition."""

import base64
import zlib

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttreg_interp.report.pack import MANTISSA_BITS, Plane, pack_codes, pack_floats

floats = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False)


def unpacked(text: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)


def read_codes(text: str, shape: tuple[int, ...], plane: Plane, first=None) -> np.ndarray:
    data = unpacked(text)
    choice, differences = data[: shape[0]], data[shape[0] :].reshape(shape).astype(np.int64)
    codes = np.zeros(shape, np.int64)
    for p, q, k in np.ndindex(shape):
        if choice[p]:
            codes[p, q, k] = differences[p, q, k] + in_first(p, q, k, plane, *first)
        elif q:
            above = q - plane.width if q >= plane.query_start + plane.width else q - 1
            guess = (codes[p, q - 1, k] + codes[p, above, k]) // 2
            codes[p, q, k] = differences[p, q, k] + guess
        else:
            codes[p, q, k] = differences[p, q, k]
        codes[p, q, k] %= 256
    return codes


def in_first(p, q, k, plane: Plane, codes, first_plane: Plane) -> int:
    rows = []
    for at, start, first_start in (
        (q, plane.query_start, first_plane.query_start),
        (k, plane.key_start, first_plane.key_start),
    ):
        if at >= start:
            rows.append(at - start + first_start)
        elif at < first_start:
            rows.append(at)
        else:
            return 0
    return int(codes[p, rows[0], rows[1]])


@st.composite
def two_arms(draw):
    """Codes of two arms with the same grid and different prefixes, alike or not."""
    height, width = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    elsewhere = draw(st.integers(0, 1))
    made = []
    for prefix in (draw(st.integers(0, 2)), draw(st.integers(0, 3))):
        plane = Plane(prefix, prefix + elsewhere, width)
        shape = (2, prefix + height * width, prefix + elsewhere + height * width)
        top = draw(st.sampled_from([1, 3, 127]))
        seed = draw(st.integers(0, 99))
        generator = torch.Generator().manual_seed(seed)
        made.append((torch.randint(0, top + 1, shape, generator=generator).to(torch.uint8), plane))
    return made


@settings(max_examples=60)
@given(two_arms())
def test_codes_come_back_exactly(arms):
    (first, first_plane), (codes, plane) = arms
    alone = pack_codes(first, first_plane)
    assert np.array_equal(read_codes(alone, first.shape, first_plane), first.numpy())
    guided = pack_codes(codes, plane, (first, first_plane))
    found = read_codes(guided, codes.shape, plane, (first.numpy(), first_plane))
    assert np.array_equal(found, codes.numpy())


def test_an_arm_like_the_first_takes_hardly_any_room():
    codes = torch.randint(0, 128, (4, 50, 50)).to(torch.uint8)
    plane = Plane(1, 1, 7)
    assert len(pack_codes(codes, plane, (codes, plane))) < len(pack_codes(codes, plane)) / 20


@given(st.lists(floats, min_size=1, max_size=20))
def test_floats_keep_their_leading_bits(values):
    tensor = torch.tensor(values)
    planes = unpacked(pack_floats(tensor)).reshape(4, -1).T
    found = np.ascontiguousarray(planes).view("<f4").ravel()
    off = np.abs(found - tensor.numpy())
    assert (off <= 2.0 ** -(MANTISSA_BITS + 1) * np.abs(tensor.numpy())).all()
