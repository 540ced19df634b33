"""Patches that draw attention without standing out by their norm: a norm threshold misses them."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.discovery.capture import check_finite, token_norms
from ttreg_interp.discovery.config import FindConfig
from ttreg_interp.discovery.exact import ExactSums
from ttreg_interp.discovery.progress import shown
from ttreg_interp.discovery.sketch import NormHistogram, bin_counts
from ttreg_interp.discovery.stream import Batch, ImageStream
from ttreg_interp.discovery.thresholds import Threshold, find_threshold

LEAST_RATIO = 3.0
"""Attention of artefacts over the median patch's, at least (geometric mean)."""


@dataclass(frozen=True)
class LayerArtefacts:
    """Attention artefacts of one layer."""

    layer: int
    """The attention layer."""
    threshold: float | None
    """Attention received above which a patch is an artefact, in units of uniform attention; None
    if no patch stands out."""
    per_image: float
    """Artefacts of an image, mean."""
    missed_by_norm: float
    """Share of the artefacts whose norm is no outlier's."""
    low_norm: float
    """Share of the artefacts whose norm is below the median of their image."""
    correlation: float
    """Of log attention received with log norm over the patches of an image, mean over images."""


@dataclass(frozen=True)
class AttentionArtefactReport:
    """What `find_attention_artefacts` found."""

    model: str
    """Spec of the model."""
    layers: tuple[LayerArtefacts, ...]
    """Layer by layer."""
    n_images: int
    """Images looked at."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"Attention artefacts of {self.model}, {self.n_images} images"]
        lines.append("layer  threshold  per image  missed by norm  below median norm  correlation")
        for row in self.layers:
            threshold = "     none" if row.threshold is None else f"{row.threshold:9.2f}"
            lines.append(
                f"{row.layer:5d}  {threshold}  {row.per_image:9.2f}  {row.missed_by_norm:14.2f}  "
                f"{row.low_norm:17.2f}  {row.correlation:11.2f}"
            )
        return "\n".join(lines)


def find_attention_artefacts(
    model: Any, images: Any, config: FindConfig | None = None, *, progress: bool = False
) -> AttentionArtefactReport:
    """Patches that receive far more attention than others, set against their norms.

        received[k] = mean over heads and queries of pattern[head, query, k], x number of tokens

    In some models (OpenAI CLIP, OpenCLIP) the patches that spoil attention maps have an ordinary or
    low norm at the output, so `find_outliers` does not see them. The images are read twice; all
    patterns are computed, so this costs more than a plain forward pass.

    Args:
        model: a HookedViT.
        images: as `find_outliers`.
        config: batch_size is used; norm outliers are told by the rule 'valley'.
        progress: show a bar.

    Returns:
        Per layer the artefacts, and how many of them a norm threshold misses. Norms are those of
        what the layer reads (`hook_resid_pre`).

    Raises:
        DataError: no images, or an iterator.
        ContractError: NaN or inf; names the layer.

    Source:
        arXiv 2505.21501, section on artefact norms.
    """
    config = config or FindConfig()
    stream = ImageStream.for_model(model, images, config.batch_size, config.workers)
    histograms = _histograms(model, shown(stream, "attention", progress))
    thresholds = [
        (
            find_threshold(NormHistogram(received), "valley", LEAST_RATIO),
            find_threshold(NormHistogram(norms), "valley"),
        )
        for received, norms in zip(
            histograms.sums["received"], histograms.sums["norms"], strict=True
        )
    ]
    sums = _joint(model, shown(stream, "artefacts", progress), thresholds)
    rows = tuple(_row(layer, pair[0], sums) for layer, pair in enumerate(thresholds))
    return AttentionArtefactReport(model.cfg.model_name, rows, sums.whole("images"))


def _histograms(model: Any, batches: Iterable[Batch]) -> ExactSums:
    sums = ExactSums()
    for batch in batches:
        received, norms = received_and_norms(model, batch.pixels)
        sums.count("received", torch.stack([bin_counts(layer) for layer in received]))
        sums.count("norms", torch.stack([bin_counts(layer) for layer in norms]))
    return sums


def received_and_norms(
    model: Any, pixels: Float[Tensor, "batch channel height width"]
) -> tuple[Float[Tensor, "layer batch patch"], Float[Tensor, "layer batch patch"]]:
    """Attention that each patch receives in each layer, 1 if attention is uniform; and its norm."""
    received: list[Tensor] = []
    norms: list[Tensor] = []
    hooks = [hook for i in range(model.cfg.n_layers) for hook in _reads(i, received, norms)]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        model(pixels, stop_at_layer=model.cfg.n_layers)
    layout = model.layout(pixels.shape).of_length(norms[0].shape[1])
    stacked = torch.stack(norms)
    check_finite(stacked, [f"blocks.{i}.hook_resid_pre" for i in range(len(norms))], model)
    return torch.stack(received)[..., layout.patches], stacked[..., layout.patches]


def _reads(
    layer: int, received: list[Tensor], norms: list[Tensor]
) -> list[tuple[str, Callable[..., None]]]:
    def read_pattern(pattern: Tensor, hook: Any) -> None:
        received.append(pattern.detach().float().mean(dim=(1, 2)) * pattern.shape[-1])

    def read_norm(resid: Tensor, hook: Any) -> None:
        norms.append(token_norms(resid.detach()))

    return [
        (f"blocks.{layer}.hook_resid_pre", read_norm),
        (f"blocks.{layer}.attn.hook_pattern", read_pattern),
    ]


def _joint(
    model: Any, batches: Iterable[Batch], thresholds: list[tuple[Threshold, Threshold]]
) -> ExactSums:
    sums = ExactSums()
    most_attended = torch.tensor([pair[0].value for pair in thresholds])[:, None, None]
    largest = torch.tensor([pair[1].value for pair in thresholds])[:, None, None]
    for batch in batches:
        received, norms = (part.cpu() for part in received_and_norms(model, batch.pixels))
        artefact = received > most_attended
        low = norms < norms.median(dim=-1, keepdim=True).values
        sums.count("images", torch.tensor(len(batch)))
        sums.count("artefacts", artefact.sum(dim=(1, 2)))
        sums.count("missed", (artefact & (norms <= largest)).sum(dim=(1, 2)))
        sums.count("low", (artefact & low).sum(dim=(1, 2)))
        sums.add("correlation", _correlation(received.log(), norms.log()).sum(dim=1))
    return sums


def _correlation(
    a: Float[Tensor, "layer batch patch"], b: Float[Tensor, "layer batch patch"]
) -> Float[Tensor, "layer batch"]:
    a, b = a - a.mean(dim=-1, keepdim=True), b - b.mean(dim=-1, keepdim=True)
    return torch.cosine_similarity(a, b, dim=-1)


def _row(layer: int, threshold: Threshold, sums: ExactSums) -> LayerArtefacts:
    artefacts = int(sums.sums["artefacts"][layer])
    n_images = sums.whole("images")
    return LayerArtefacts(
        layer=layer,
        threshold=threshold.value if threshold.share else None,
        per_image=artefacts / n_images,
        missed_by_norm=int(sums.sums["missed"][layer]) / max(artefacts, 1),
        low_norm=int(sums.sums["low"][layer]) / max(artefacts, 1),
        correlation=float(sums["correlation"][layer]) / n_images,
    )
