"""Outliers of a model: where, how many, how strong, since which layer, and what places them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ttreg_interp.discovery.config import FindConfig
from ttreg_interp.discovery.observe import Observer
from ttreg_interp.discovery.priors import OutlierPriors, read_priors
from ttreg_interp.discovery.progress import shown
from ttreg_interp.discovery.scores import score_neurons
from ttreg_interp.discovery.stream import ImageStream
from ttreg_interp.discovery.survey import Detection, NormSurvey, detect, survey_norms


@dataclass(frozen=True)
class LayerNorms:
    """Norms of the candidate tokens at one layer; each number after attention and after the MLP."""

    layer: int
    """The block."""
    median_after_attention: float
    """Mean over images of the median norm."""
    median_after_mlp: float
    """The same after the MLP."""
    max_after_attention: float
    """Mean over images of the largest norm."""
    max_after_mlp: float
    """The same after the MLP."""
    ratio_after_attention: float
    """Mean over images of largest norm / median norm."""
    ratio_after_mlp: float
    """The same after the MLP."""


@dataclass(frozen=True)
class OutlierReport:
    """What `find_outliers` found; norms are those of the residual stream before any final norm."""

    model: str
    """Spec of the model."""
    image_size: tuple[int, int]
    """Height and width of the images, in pixels."""
    layers: tuple[LayerNorms, ...]
    """Norms, layer by layer."""
    rule: str
    """Rule of the threshold, with its number."""
    threshold: float | None
    """Norm above which a token is an outlier; None where the rule finds no outliers."""
    detect_layer: int
    """Block whose output is compared with the threshold."""
    emerges_at: int | None
    """First layer at which outliers stand out; None without outliers."""
    separation: float
    """Norm of outliers (geometric mean) over the median norm, at the detection layer."""
    candidates: str
    """Which tokens may be outliers."""
    priors: OutlierPriors
    """Counts, and what places the outliers."""

    @property
    def n_images(self) -> int:
        """Images looked at."""
        return self.priors.n_images

    @property
    def images_with_outliers(self) -> int:
        """Images with at least one outlier."""
        return self.priors.images_with_outliers

    @property
    def outliers_per_image(self) -> float:
        """Mean number of outlier patches."""
        return self.priors.outliers_per_image

    @property
    def steps(self) -> tuple[int, ...]:
        """Layers through which the largest norm gains half or more on the median; outliers may
        arise in several such steps."""
        ratios = [1.0, *(row.ratio_after_mlp for row in self.layers)]
        gains = zip(ratios[1:], ratios[:-1], strict=True)
        last = self.detect_layer
        return tuple(
            layer
            for layer, (new, old) in enumerate(gains)
            if 1 <= layer <= last and new >= 1.5 * old
        )

    @property
    def has_outliers(self) -> bool:
        """Whether any image has one."""
        return self.images_with_outliers > 0

    @classmethod
    def of(
        cls, model: Any, survey: NormSurvey, detection: Detection, priors: OutlierPriors
    ) -> "OutlierReport":
        """The report of a survey, a detection and the counts made with it."""
        finite = detection.threshold.value < float("inf")
        return cls(
            model=model.cfg.model_name,
            image_size=survey.image_size,
            layers=tuple(_row(survey, layer) for layer in range(survey.n_layers)),
            rule=detection.threshold.rule,
            threshold=detection.threshold.value if finite else None,
            detect_layer=detection.detect_layer,
            emerges_at=detection.emerges_at,
            separation=detection.threshold.separation,
            candidates=detection.candidates,
            priors=priors,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"priors": self.priors.to_dict(), "steps": list(self.steps)}

    def plot(self, path: str | Path) -> None:
        """Save a picture: largest and median norm by layer (arXiv 2506.08010, Fig. 2)."""
        from ttreg_interp.discovery.plots import plot_outliers

        plot_outliers(self, Path(path))

    def summary(self) -> str:
        """The findings in one or two sentences."""
        peak = max(row.ratio_after_mlp for row in self.layers)
        if not self.has_outliers:
            return (
                f"No outliers: in {self.n_images} images no token stands out by the rule "
                f"{self.rule} at layer {self.detect_layer}; the largest norm is {peak:.2f} x the "
                "median at most (mean over images)."
            )
        priors = self.priors
        return (
            f"{priors.images_with_outliers} of {self.n_images} images have outliers, "
            f"{priors.outliers_per_image:.1f} an image ({priors.outlier_share:.2%} of the patches), "
            f"norm {self.separation:.1f} x the median above {self.threshold:.4g} "
            f"({self.rule}) at layer {self.detect_layer}; they emerge at layer {self.emerges_at}, in steps at "
            f"{list(self.steps)}. "
            f"What places them: {priors.kind}."
        )

    def __str__(self) -> str:
        lines = [f"Outliers of {self.model}", self.summary(), ""]
        lines.append("layer   median att/mlp   mean of max att/mlp   max/median att/mlp")
        lines += [
            f"{row.layer:5d}   {row.median_after_attention:7.2f} {row.median_after_mlp:7.2f}   "
            f"{row.max_after_attention:9.2f} {row.max_after_mlp:9.2f}   "
            f"{row.ratio_after_attention:8.2f} {row.ratio_after_mlp:8.2f}"
            for row in self.layers
        ]
        priors = self.priors
        lines += [
            "",
            f"position: another image has an outlier at the same place with chance "
            f"{priors.position_repeat:.2f} (anywhere: {priors.position_chance:.2f})",
            f"content: cosine to neighbours {priors.neighbour_similarity:.2f} at outliers, "
            f"{priors.neighbour_similarity_others:.2f} elsewhere (AUC {priors.content_auc:.2f})",
            f"[CLS] above the threshold in {priors.cls_outliers} images",
        ]
        return "\n".join(lines)


def _row(survey: NormSurvey, layer: int) -> LayerNorms:
    columns = (survey.mean_median, survey.mean_max, survey.max_over_median)
    return LayerNorms(
        layer, *(float(column[layer, stage]) for column in columns for stage in (0, 1))
    )


def find_outliers(
    model: Any, images: Any, config: FindConfig | None = None, *, progress: bool = False
) -> OutlierReport:
    """Where outliers are, how many, how strong, since which layer, and what places them.

    A token is an outlier if the norm of its residual stream after block `detect_layer`, before the
    final norm, exceeds the threshold. The images are read twice: once for the norms of all layers,
    once to count.

    Args:
        model: a HookedViT.
        images: a tensor of pixels [image, channel, height, width], `tt.images(...)`, or an iterable
            of pixel batches that can be read twice.
        config: candidates, threshold, detect_layer and batch_size are used.
        progress: show a bar.

    Returns:
        The report; a model without outliers gives one that says so.

    Raises:
        DataError: no images, or an iterator.
        ContractError: NaN or inf in the activations; names the layer.

    Source:
        arXiv 2506.08010, section 3 and A.4; arXiv 2309.16588, section 2.

    Example:
        >>> import torch
        >>> from ttreg_interp.hooked import load
        >>> report = find_outliers(load("timm:test_vit?random"), torch.randn(4, 3, 160, 160))
        >>> report.has_outliers
        False
    """
    config = (config or FindConfig()).resolved()
    stream = ImageStream.for_model(model, images, config.batch_size, config.workers)
    survey = survey_norms(model, shown(stream, "norms", progress), config.candidates or "patches")
    detection = detect(model, survey, config)
    observer = Observer(model, detection, layers=range(0))
    sums = score_neurons(observer, shown(stream, "outliers", progress))
    return OutlierReport.of(model, survey, detection, read_priors(sums))
