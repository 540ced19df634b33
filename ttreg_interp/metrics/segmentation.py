"""Segmentation: overlaps per image, semantic mIoU, and the protocol for binarised attention maps.

What is kept of an image is a few counts per class. They stream (`a + b` joins two batches, or two
shards), give the scores of the whole set exactly, and can be resampled by image, so that every
score has an interval.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import interpolate

from ttreg_interp.errors import DataError
from ttreg_interp.metrics._values import check_classes, check_finite
from ttreg_interp.metrics.intervals import Interval, mean_interval, ratio_interval
from ttreg_interp.metrics.set_scores import MeanOfRuns, Numbers, SetScore


@dataclass(frozen=True, eq=False)
class Overlap:
    """Pixel counts of each image and class, without the pixels to ignore."""

    intersection: Int[Tensor, "batch class"]
    """Pixels of the class that were predicted as such."""
    predicted: Int[Tensor, "batch class"]
    """Pixels predicted as the class."""
    labelled: Int[Tensor, "batch class"]
    """Pixels of the class."""

    def __add__(self, other: "Overlap") -> "Overlap":
        """The images of both, in order."""
        return Overlap(
            torch.cat([self.intersection, other.intersection]),
            torch.cat([self.predicted, other.predicted]),
            torch.cat([self.labelled, other.labelled]),
        )

    @property
    def iou(self) -> Float[Tensor, " class"]:
        """Intersection over union of each class over all images; NaN for a class seen nowhere."""
        intersection = self.intersection.sum(dim=0).double()
        return intersection / (self.predicted.sum(dim=0) + self.labelled.sum(dim=0) - intersection)

    def miou(self, seed: int = 0, level: float = 0.95) -> Interval:
        """Mean over classes of the IoU over all images, with its interval over images.

        Classes that are neither labelled nor predicted anywhere are left out of the mean.
        """
        return mean_miou((self,), seed, level)

    def pixel_accuracy(self, seed: int = 0, level: float = 0.95) -> Interval:
        """Share of all pixels that were predicted correctly, with its interval over images."""
        correct, pixels = self.intersection.sum(dim=1), self.labelled.sum(dim=1)
        return ratio_interval(correct, pixels, seed, level)


def overlap(
    prediction: Int[Tensor, "batch rows columns"],
    target: Int[Tensor, "batch rows columns"],
    classes: int,
    ignore: int = 255,
) -> Overlap:
    """Count the pixels that prediction and target share, by image and class.

    Args:
        prediction: class of each pixel.
        target: true class of each pixel, or `ignore`.
        classes: how many there are; ids count from 0.
        ignore: target id of pixels to leave out.

    Returns:
        The counts. Add those of further batches, then ask for `miou()`.

    Raises:
        DataError: an id that is no class.

    Source:
        mIoU over the whole set (not per image), arXiv 1411.4038, section 5.

    Example:
        >>> prediction, target = torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 1, 255]]])
        >>> overlap(prediction, target, classes=2).iou.tolist()
        [1.0, 1.0]
    """
    kept = target != ignore
    check_classes(prediction, classes, "prediction")
    check_classes(target[kept], classes, "target")
    images = torch.arange(len(target), device=target.device)[:, None, None].expand_as(target)

    def count(pixels: Bool[Tensor, "batch rows columns"], ids: Tensor) -> Tensor:
        cells = images[pixels] * classes + ids[pixels].long()
        return cells.bincount(minlength=len(target) * classes).view(len(target), classes)

    return Overlap(
        intersection=count(kept & (prediction == target), target),
        predicted=count(kept, prediction),
        labelled=count(kept, target),
    )


def mean_miou(overlaps: tuple[Overlap, ...], seed: int = 0, level: float = 0.95) -> Interval:
    """Mean over runs (seeds of a probe) of their mIoU, with its interval over the images they share.

    Args:
        overlaps: one per run, of the same images in the same order.
        seed: of the resampling.
        level: confidence level.

    Returns:
        The mean, with its interval.

    Raises:
        DataError: no run, runs of different images, or fewer than two images.

    Example:
        >>> run = overlap(torch.tensor([[[0, 1]], [[1, 1]]]), torch.tensor([[[0, 1]], [[0, 1]]]), 2)
        >>> mean_miou((run, run)).estimate
        0.58...
    """
    return MeanOfRuns([MeanIoU(run) for run in overlaps]).interval(seed, level)


@dataclass(frozen=True, eq=False)
class MeanIoU(SetScore):
    """Mean over classes of the IoU over all images; classes seen nowhere are left out."""

    overlap: Overlap
    """Counts of the images."""
    scale: float | int = 1
    """Factor on the mean; 100 for per cent."""

    @property
    def n_images(self) -> int:
        """See SetScore."""
        return len(self.overlap.labelled)

    def of(self, weights: np.ndarray) -> Numbers:
        """See SetScore."""
        counts = (self.overlap.intersection, self.overlap.predicted, self.overlap.labelled)
        sums = [weights @ part.double().cpu().numpy() for part in counts]
        return self.scale * _miou(*sums)


@dataclass(frozen=True, eq=False)
class MapScores:
    """How well maps (of attention, say) segment the foreground, image by image."""

    overlap: Overlap
    """Of the binarised maps; class 0 is background, class 1 foreground."""
    average_precision: Float[Tensor, " batch"]
    """Area under precision over recall of the map as it is, both classes ranked together."""

    def __add__(self, other: "MapScores") -> "MapScores":
        """The images of both, in order."""
        precisions = torch.cat([self.average_precision, other.average_precision])
        return MapScores(self.overlap + other.overlap, precisions)

    def miou(self, seed: int = 0, level: float = 0.95) -> Interval:
        """Mean IoU of background and foreground over all images."""
        return self.overlap.miou(seed, level)

    def pixel_accuracy(self, seed: int = 0, level: float = 0.95) -> Interval:
        """Share of all pixels on the right side of the threshold."""
        return self.overlap.pixel_accuracy(seed, level)

    def mean_average_precision(self, seed: int = 0, level: float = 0.95) -> Interval:
        """Mean over images of the average precision."""
        return mean_interval(self.average_precision, seed, level)


def score_maps(
    maps: Float[Tensor, "batch height width"],
    masks: Int[Tensor, "batch rows columns"],
    ignore: int = -1,
) -> MapScores:
    """Score maps against foreground masks as on ImageNet-Segmentation.

    A map is enlarged bilinearly to the mask and brought to [0, 1]; pixels above its mean are
    foreground. Average precision ranks the scores m of "is foreground" and 1 - m of "is background"
    together. A constant map marks everything as background.

    Args:
        maps: one value per patch, e.g. the [CLS] row of the last layer's pattern, mean over heads.
        masks: 1 foreground, 0 background, or `ignore`.
        ignore: mask value of pixels to leave out.

    Returns:
        The scores of each image; add those of further batches.

    Raises:
        DataError: no maps, NaN, other mask values, or a mask of ignored pixels only.

    Source:
        Chefer et al., arXiv 2012.09838, section 4, and Gandelsman et al., arXiv 2310.05916
        (protocol); arXiv 2506.08010, table 4.

    Example:
        >>> maps = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
        >>> scores = score_maps(maps, torch.tensor([[[0, 1], [0, 1]]]))
        >>> scores.overlap.iou.tolist(), scores.average_precision.tolist()
        ([1.0, 1.0], [1.0])
    """
    check_finite(maps, "maps")
    size = (masks.shape[1], masks.shape[2])
    enlarged = interpolate(maps[:, None].double(), size, mode="bilinear", align_corners=False)[:, 0]
    varied = (maps.amax(dim=(1, 2)) > maps.amin(dim=(1, 2)))[:, None, None]
    foreground = varied & (enlarged > enlarged.mean(dim=(1, 2), keepdim=True))
    low, high = enlarged.amin(dim=(1, 2), keepdim=True), enlarged.amax(dim=(1, 2), keepdim=True)
    # float32, so that rounding in the enlargement does not rank pixels of one patch
    scores = ((enlarged - low) / torch.where(varied, high - low, 1.0)).float()
    counts = overlap(foreground.long(), masks, classes=2, ignore=ignore)
    if (empty := counts.labelled.sum(dim=1) == 0).any():
        image = int(empty.nonzero()[0])
        raise DataError(f"The mask of image {image} has only ignored pixels; leave the image out.")
    pairs = zip(scores, masks, strict=True)
    precisions = [_two_class_precision(score, mask, ignore) for score, mask in pairs]
    return MapScores(counts, torch.stack(precisions))


def average_precision(
    scores: Float[Tensor, " pixel"], positive: Bool[Tensor, " pixel"]
) -> Float[Tensor, ""]:
    """Area under the precision-recall steps: sum_i (R_i - R_{i-1}) P_i over the distinct scores.

    Args:
        scores: higher for likelier positives.
        positive: the truth.

    Returns:
        Average precision, in float64.

    Raises:
        DataError: NaN, or no positive.

    Example:
        >>> average_precision(torch.tensor([0.9, 0.8, 0.1]), torch.tensor([True, False, True])).item()
        0.83...
    """
    check_finite(scores, "scores")
    if not positive.any():
        raise DataError(f"Found no positive among {len(positive)}; recall is undefined.")
    ranked = scores.sort(descending=True)
    hits = positive[ranked.indices].double().cumsum(dim=0)
    # equal scores are reached together, so only the last of them is a step
    last = torch.ones_like(positive)
    last[:-1] = ranked.values[:-1] != ranked.values[1:]
    reached = last.nonzero()[:, 0]
    hits = hits[reached]
    recall_steps = torch.diff(hits, prepend=hits.new_zeros(1)) / hits[-1]
    return (recall_steps * hits / (reached + 1)).sum()


def _two_class_precision(
    score: Float[Tensor, "rows columns"], mask: Int[Tensor, "rows columns"], ignore: int
) -> Float[Tensor, ""]:
    kept = mask != ignore
    score, foreground = score[kept], mask[kept] == 1
    return average_precision(torch.cat([1 - score, score]), torch.cat([~foreground, foreground]))


def _miou(intersection: np.ndarray, predicted: np.ndarray, labelled: np.ndarray) -> Numbers:
    """Mean IoU over the classes that are seen, which is the last axis."""
    union = predicted + labelled - intersection
    seen = union > 0
    return (intersection / np.where(seen, union, 1)).sum(axis=-1) / seen.sum(axis=-1)
