"""The survey: norms of every layer over many images, and what follows from them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ttreg_interp.discovery.capture import residual_norms, resolve_layer
from ttreg_interp.discovery.config import FindConfig
from ttreg_interp.discovery.exact import ExactSums
from ttreg_interp.discovery.sketch import NormHistogram, bin_counts
from ttreg_interp.discovery.stream import Batch
from ttreg_interp.discovery.thresholds import Threshold, find_threshold
from ttreg_interp.errors import DataError

COMPLETE = 0.98
"""Outliers are complete where their norm reaches this share of its largest value over layers."""
STRONG = 0.8
"""A layer shows the outliers if share x log separation reaches this share of the largest."""

EMERGED = 4.0
"""Outliers have emerged where the largest norm is this many times the median."""


@dataclass(frozen=True)
class NormSurvey:
    """Norms of the candidate tokens of many images, by layer and stage (attention, MLP)."""

    counts: Int[Tensor, "layer stage bin"]
    """Histogram of the norms of all images."""
    mean_median: Float[Tensor, "layer stage"]
    """Mean over images of the median norm."""
    mean_max: Float[Tensor, "layer stage"]
    """Mean over images of the largest norm (arXiv 2506.08010, Fig. 2)."""
    max_over_median: Float[Tensor, "layer stage"]
    """Mean over images of the largest norm over the median."""
    n_images: int
    """Images."""
    image_size: tuple[int, int]
    """Their height and width, in pixels."""

    @property
    def n_layers(self) -> int:
        """Blocks."""
        return self.counts.shape[0]

    def histogram(self, layer: int, stage: int = 1) -> NormHistogram:
        """Norms of one layer after its attention (stage 0) or its MLP (stage 1)."""
        return NormHistogram(self.counts[layer, stage])


def survey_norms(model: Any, batches: Iterable[Batch], candidates: str = "patches") -> NormSurvey:
    """Run the images once and sum up their norms.

    Args:
        model: a HookedViT.
        batches: the images.
        candidates: 'patches', or 'all' tokens of the source model.

    Raises:
        DataError: no images.
        ContractError: NaN or inf; names the layer.
    """
    sums, size = ExactSums(), (0, 0)
    for batch in batches:
        size = (batch.pixels.shape[2], batch.pixels.shape[3])
        norms, layout = residual_norms(model, batch.pixels)
        _add_norms(sums, norms[..., candidate_rows(layout, candidates)])
    if not sums.sums:
        raise DataError(
            "Found no images. Give at least two, better 50 or more. (The log names files that cannot "
            "be read.)"
        )
    n_images = sums.whole("images")
    return NormSurvey(
        counts=sums.sums["counts"],
        mean_median=sums["median"] / n_images,
        mean_max=sums["max"] / n_images,
        max_over_median=sums["ratio"] / n_images,
        n_images=n_images,
        image_size=size,
    )


def candidate_rows(layout: Any, candidates: str) -> Any:
    """Rows of the token axis that may be outliers; a test-time register is meant to be large."""
    if candidates == "patches":
        return layout.patches
    rows = torch.arange(layout.n_tokens)
    return torch.cat((rows[: layout.n_prefix], rows[layout.patches]))


def _add_norms(sums: ExactSums, norms: Float[Tensor, "layer stage batch token"]) -> None:
    median, largest = norms.median(dim=-1).values, norms.amax(dim=-1)
    sums.count("images", torch.tensor(norms.shape[2]))
    sums.add("median", median.sum(dim=-1))
    sums.add("max", largest.sum(dim=-1))
    sums.add("ratio", (largest / median.clamp_min(1e-12)).sum(dim=-1))
    flat = norms.flatten(0, 1)
    counts = torch.stack([bin_counts(site) for site in flat])
    sums.count("counts", counts.unflatten(0, norms.shape[:2]))


@dataclass(frozen=True)
class Detection:
    """How outliers are told, found once on the intact model and then kept."""

    threshold: Threshold
    """The norm above which a token is an outlier."""
    detect_layer: int
    """The block whose output norms are compared with it."""
    emerges_at: int | None
    """The first layer at which outliers stand out; None without outliers."""
    candidates: str
    """'patches' or 'all'."""

    @property
    def has_outliers(self) -> bool:
        """Whether any token of the survey exceeds the threshold."""
        return self.threshold.share > 0


def detect(model: Any, survey: NormSurvey, config: FindConfig) -> Detection:
    """Choose layer and threshold from the survey, where the configuration leaves them open."""
    config = config.resolved()
    if config.detect_layer is None:
        layer = _detection_layer(survey)
    else:
        layer = resolve_layer(model, config.detect_layer, "detect_layer")
    assert config.threshold is not None and config.candidates is not None
    found = find_threshold(survey.histogram(layer), config.threshold, config.threshold_value)
    emerges_at = _emergence(survey, layer) if found.share else None
    return Detection(found, layer, emerges_at, config.candidates)


def _detection_layer(survey: NormSurvey) -> int:
    """The first layer at which the outliers are complete.

    The last block of some models hides them (DINOv2 ViT-L/14), and outliers may arise in several
    steps: hence the layers that show most of them, and of these the first at full norm.
    """
    valleys = [
        find_threshold(survey.histogram(layer), "valley") for layer in range(survey.n_layers)
    ]
    strength = torch.tensor([valley.share * _log(valley.separation) for valley in valleys])
    if not strength.any():
        return survey.n_layers - 1
    strong = strength >= STRONG * strength.max()
    level = torch.tensor([valley.level for valley in valleys]) * strong
    return int((level >= COMPLETE * level.max()).nonzero()[0])


def _log(value: float) -> float:
    return float(torch.tensor(value).log())


def _emergence(survey: NormSurvey, detect_layer: int) -> int:
    """The first layer whose largest norm is 4 times the median, or stands out half as far, in
    logarithms, as it ever does."""
    ratio = survey.max_over_median[: detect_layer + 1, 1]
    emerged = ratio >= min(EMERGED, float(ratio.max()) ** 0.5)
    return int(emerged.nonzero()[0])
