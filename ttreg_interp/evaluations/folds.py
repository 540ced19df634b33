"""What probes share: cross-validation where a set brings no training images, seeds, device."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ttreg_interp.data.annotated import Annotated
from ttreg_interp.errors import DataError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.metrics.intervals import Interval


def checked_or_crossed(data: Mapping[str, Annotated[Any]]) -> dict[str, Annotated[Any]]:
    """What to check: the test set, and the training set where there is one.

    Raises:
        DataError: another split.
    """
    if strangers := sorted(set(data) - {"train", "test"}):
        raise DataError(f"Found the image sets {strangers}; a probe takes 'test', and 'train'.")
    if "train" in data and "test" in data and data["train"].kind is not data["test"].kind:
        raise DataError(
            f"The training set is annotated with {data['train'].kind.__name__}, the test set with "
            f"{data['test'].kind.__name__}."
        )
    return {split: images for split, images in data.items() if split == "test"}


def probe_device(model: HookedViT) -> torch.device:
    """Where a probe of a model's features is trained: its GPU if it is CUDA's, which knows float64."""
    device = torch.device(model.cfg.device or "cpu")
    return device if device.type == "cuda" else torch.device("cpu")


def folds(n_images: int, k: int, seed: int = 0) -> list[Int[Tensor, " _"]]:
    """Places of the test images of each fold: a random partition into k parts.

    Raises:
        DataError: fewer than 2 folds, or more than images.

    Example:
        >>> sorted(torch.cat(folds(5, 2)).tolist())
        [0, 1, 2, 3, 4]
    """
    if not 2 <= k <= n_images:
        raise DataError(f"{k} folds of {n_images} images: allowed are 2 up to the images.")
    order = torch.randperm(n_images, generator=torch.Generator().manual_seed(seed))
    return [part.sort().values for part in order.tensor_split(k)]


def others(fold: Int[Tensor, " _"], n_images: int) -> Int[Tensor, " _"]:
    """Places of the images that are not in the fold."""
    kept = torch.ones(n_images, dtype=torch.bool)
    kept[fold] = False
    return kept.nonzero()[:, 0]


def over_seeds(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean over seeds with Student's t interval, as the paper's tables give it.

    Raises:
        DataError: fewer than two seeds.

    Example:
        >>> str(over_seeds([0.70, 0.71, 0.72]))
        '0.710 [0.685, 0.735]'
    """
    import numpy as np
    from scipy import stats

    if len(values) < 2:
        raise DataError("An interval over seeds needs two seeds or more.")
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half, level, "Student t over seeds", len(values))
