"""Checks of what goes into a metric: never empty, never NaN, as many of one thing as of the other."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from ttreg_interp.errors import DataError

Values: TypeAlias = Sequence[float | int] | np.ndarray | Tensor
"""One number (or truth value) per image, draw or hypothesis."""


def as_values(values: Values, name: str = "values", least: int = 2) -> np.ndarray:
    """One-axis float64 array of finite numbers."""
    # numpy knows no bfloat16, so a tensor is widened before it crosses over
    array = values.detach().double().cpu() if isinstance(values, Tensor) else values
    array = np.asarray(array, dtype=np.float64)
    if array.ndim != 1:
        raise DataError(
            f"{name} has shape {tuple(array.shape)}; give one axis with a value per image "
            "(reduce the tokens of an image to one value first)."
        )
    if array.size < least:
        raise DataError(
            f"{name} has {array.size} value(s); at least {least} needed: fewer show no spread."
        )
    if bad := int((~np.isfinite(array)).sum()):
        place = int(np.flatnonzero(~np.isfinite(array))[0])
        raise DataError(
            f"{name} has {bad} NaN or infinite value(s) among {array.size}, the first at {place}; "
            "find the image that made them."
        )
    return array


def as_truth(values: Values, name: str) -> np.ndarray:
    """One-axis boolean array from zeros and ones."""
    array = as_values(values, name)
    if not np.isin(array, (0, 1)).all():
        raise DataError(
            f"{name} must hold only 0 and 1; found {array[~np.isin(array, (0, 1))][0]}."
        )
    return array.astype(bool)


def check_paired(a: np.ndarray, b: np.ndarray) -> None:
    """Raise unless both hold as many images."""
    if a.size != b.size:
        raise DataError(
            f"Found {a.size} and {b.size} values; pairs need the same images in the same order."
        )


def check_finite(tensor: Shaped[Tensor, "*any"], name: str) -> None:
    """Raise if a tensor is empty or holds NaN or infinite entries, and say where the first one is."""
    if not tensor.numel():
        raise DataError(
            f"{name} is empty, of shape {tuple(tensor.shape)}; give at least one entry."
        )
    broken = ~torch.isfinite(tensor)
    if broken.any():
        place = tuple(broken.nonzero()[0].tolist())
        raise DataError(
            f"{name} of shape {tuple(tensor.shape)} has {int(broken.sum())} NaN or infinite entries, "
            f"the first at {place}; find what made them, or run in a wider dtype."
        )


def check_classes(ids: Int[Tensor, "*any"], classes: int, name: str) -> None:
    """Raise unless every id is one of the classes."""
    outside = ids[(ids < 0) | (ids >= classes)]
    if len(outside):
        raise DataError(
            f"{name} holds class {int(outside[0])}; the classes are 0 .. {classes - 1}."
        )
