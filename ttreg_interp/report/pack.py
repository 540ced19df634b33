"""Maps as text inside a page: predicted, deflated, base64. `page/decode.js` undoes it.

Attention codes are noisy in their low bits, so that deflate alone gains little; what is packed is
the difference from a prediction, modulo 256. A plane (one layer, one head) is predicted either from
itself or from the first arm, whichever leaves less:

    itself:     x[q, k] ~ (x[q - 1, k] + x[q - width, k]) // 2     the queries to the left and above
    first arm:  x[q, k] ~ x_first[q', k']                          the same tokens; 0 for new ones
"""

import base64
import zlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

MANTISSA_BITS = 11
"""Of packed floats: a relative error of at most 2^-12."""


@dataclass(frozen=True)
class Plane:
    """Where patches start on the two axes of a plane, and how many blocks a grid row has."""

    query_start: int
    """Queries before the first block of patches."""
    key_start: int
    """Keys before the first block of patches."""
    width: int
    """Blocks of queries in a row of the grid."""


def pack_floats(values: Float[Tensor, "*shape"]) -> str:
    """Float32 with `MANTISSA_BITS` bits of mantissa; bytes of equal weight stand together."""
    bits = values.detach().contiguous().numpy().astype("<f4").view("<u4").ravel()
    dropped = 23 - MANTISSA_BITS
    rounded = (bits + (1 << (dropped - 1))) >> dropped << dropped
    return _text(rounded.view(np.uint8).reshape(-1, 4).T)


def pack_codes(
    codes: UInt8[Tensor, "*plane query key"],
    plane: Plane,
    first: tuple[UInt8[Tensor, "*plane first_query first_key"], Plane] | None = None,
) -> str:
    """Planes of codes: one byte for each plane saying its prediction (0 itself, 1 the first arm),
    then all differences.

    Args:
        codes: one layer or (layer, head) after the other.
        plane: their axes.
        first: codes and axes of the first arm, to predict from.
    """
    planes = codes.flatten(0, -3).numpy()
    differences = planes - _predicted_from_itself(planes, plane)
    choice = np.zeros(len(planes), np.uint8)
    if first is not None:
        aligned = _aligned(first[0].flatten(0, -3).numpy(), first[1], planes.shape, plane)
        others = planes - aligned
        choice = (_size(others) < _size(differences)).astype(np.uint8)
        differences = np.where(choice[:, None, None] == 1, others, differences)
    return _text(np.concatenate((choice, differences.ravel())))


def _predicted_from_itself(planes: np.ndarray, plane: Plane) -> np.ndarray:
    predicted = np.zeros_like(planes)
    predicted[:, 1:] = planes[:, :-1]
    below = plane.query_start + plane.width
    left, above = planes[:, below - 1 : -1], planes[:, plane.query_start : -plane.width]
    if planes.shape[1] > below:
        # codes are below 128, so that the sum fits a byte
        predicted[:, below:] = (left + above) >> 1
    return predicted


def _aligned(
    first: np.ndarray, first_plane: Plane, shape: tuple[int, ...], plane: Plane
) -> np.ndarray:
    """The first arm's planes on this arm's axes; 0 where the first arm has no such token."""
    aligned = np.zeros(shape, np.uint8)
    queries, first_queries = _shared(plane.query_start, first_plane.query_start, shape[1])
    keys, first_keys = _shared(plane.key_start, first_plane.key_start, shape[2])
    aligned[np.ix_(range(shape[0]), queries, keys)] = first[
        np.ix_(range(shape[0]), first_queries, first_keys)
    ]
    return aligned


def _shared(start: int, first_start: int, n_rows: int) -> tuple[list[int], list[int]]:
    """Rows that both arms have, by their place in either."""
    prefix = list(range(min(start, first_start)))
    patches = range(n_rows - start)
    return prefix + [start + i for i in patches], prefix + [first_start + i for i in patches]


def _size(differences: np.ndarray) -> np.ndarray:
    """How much there is to store, by plane."""
    return np.abs(differences.view(np.int8).astype(np.int16)).sum(axis=(1, 2))


def _text(data: np.ndarray) -> str:
    # Matching strings in noise costs time and gains nothing; runs of zeros are what repeats.
    deflate = zlib.compressobj(6, memLevel=9, strategy=zlib.Z_RLE)
    packed = deflate.compress(np.ascontiguousarray(data).tobytes()) + deflate.flush()
    return base64.b64encode(packed).decode()
