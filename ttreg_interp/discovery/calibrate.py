"""Choices that the data make: the layers to search, and how many neurons to take."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.discovery.capture import resolve_layer, token_norms
from ttreg_interp.discovery.config import FindConfig
from ttreg_interp.discovery.scores import NeuronScores
from ttreg_interp.discovery.survey import Detection, candidate_rows
from ttreg_interp.errors import DataError
from ttreg_interp.interventions.base import Empty, Intervention
from ttreg_interp.interventions.neuron_set import NeuronSet
from ttreg_interp.interventions.registers import TestTimeRegister

LAYER_SHARE = 0.005
"""A layer is searched if its neurons wrote at least this share of the outliers' excess."""
NEURON_SHARE = 0.001
"""No neuron below this share of the outliers' excess makes outliers."""
MOST_NEURONS = 512
"""No more than these are tried."""
CLEAR_GAP = 3.0
"""A ratio of neighbouring scores that parts register neurons from the rest."""

Ranking = list[tuple[int, int, float]]


@dataclass(frozen=True)
class ArmResult:
    """Held-out images under one intervention."""

    outliers: Float[Tensor, " image"]
    """Outliers of each image."""
    drift: Float[Tensor, " image"]
    """1 - cosine of the output to the intact model's."""


@dataclass(frozen=True)
class Trial:
    """Held-out images, and what the intact model makes of them."""

    model: Any
    """A HookedViT."""
    detection: Detection
    """How outliers are told: the threshold of the intact model, for every arm."""
    batches: tuple[Tensor, ...]
    """Pixels of the held-out images."""
    intact: tuple[Tensor, ...]
    """Outputs of the intact model."""
    outliers: Float[Tensor, " image"]
    """Outliers of each image in the intact model."""

    @classmethod
    def of(cls, model: Any, detection: Detection, batches: Iterable[Tensor]) -> "Trial":
        """Run the intact model once."""
        kept = tuple(batches)
        runs = [_outputs_and_outliers(model, detection, pixels) for pixels in kept]
        counts = torch.cat([count for _, count in runs]) if runs else torch.zeros(0)
        return cls(model, detection, kept, tuple(output for output, _ in runs), counts)

    @property
    def n_images(self) -> int:
        """Held-out images."""
        return len(self.outliers)

    def run(self, intervention: Intervention) -> ArmResult:
        """The same images under an intervention."""
        outliers, drift = [], []
        for pixels, intact in zip(self.batches, self.intact, strict=True):
            with self.model.intervened(intervention):
                output, count = _outputs_and_outliers(self.model, self.detection, pixels)
            outliers.append(count)
            drift.append(1 - torch.cosine_similarity(output, intact, dim=-1))
        return ArmResult(torch.cat(outliers), torch.cat(drift))

    def shifted(self, neurons: Iterable[tuple[int, int]]) -> ArmResult:
        """The same images with these neurons moved to a test-time register; none: the model as is."""
        chosen = NeuronSet.of(list(neurons))
        return self.run(TestTimeRegister(chosen) if len(chosen) else Empty())

    def left(self, result: ArmResult) -> float:
        """Share of the outliers that an arm leaves."""
        return float(result.outliers.sum() / self.outliers.sum().clamp_min(1))


def _outputs_and_outliers(
    model: Any, detection: Detection, pixels: Tensor
) -> tuple[Tensor, Tensor]:
    norms: list[Tensor] = []
    site = f"blocks.{detection.detect_layer}.hook_resid_post"
    read = (site, lambda resid, hook: norms.append(token_norms(resid)))
    with torch.no_grad(), model.hooks(fwd_hooks=[read]):
        output = model(pixels)
    layout = model.layout(pixels.shape).of_length(norms[0].shape[1])
    rows = norms[0][:, candidate_rows(layout, detection.candidates)]
    count = (rows > detection.threshold.value).sum(dim=1)
    return output.flatten(1).float(), count.double().cpu()


def search_range(model: Any, config: FindConfig, scores: NeuronScores, detect_layer: int) -> range:
    """Layers to search: from the first to the last whose neurons wrote part of the outliers.

    Layer 0 is left out unless named: in a search over all layers of supervised ViTs one neuron of
    layer 0 cost 2.7 points of accuracy and suppressed nothing.

    Raises:
        LayoutError: the model has no such layer.
        DataError: the first layer lies behind the last.
    """
    share = dict(zip(scores.layers, scores.layer_share().tolist(), strict=True))
    writes = [layer for layer in share if share[layer] >= LAYER_SHARE and 0 < layer <= detect_layer]
    first, last = (writes[0], writes[-1]) if writes else (scores.layers.start, detect_layer)
    if config.first_layer is not None:
        first = resolve_layer(model, config.first_layer, "first_layer")
    if config.last_layer is not None:
        last = resolve_layer(model, config.last_layer, "last_layer")
    if first > last:
        raise DataError(
            f"The search would begin at layer {first} and end at layer {last}. Give first_layer <= "
            "last_layer, or leave both open."
        )
    return range(first, last + 1)


@dataclass(frozen=True)
class CurvePoint:
    """The held-out images with the k best neurons moved to a register."""

    k: int
    """Neurons moved."""
    outliers_left: float
    """Share of the outliers that are left."""
    drift: float
    """Mean over images of 1 - cosine of the output to the intact model's."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return asdict(self)


class GreedyCurve:
    """Outliers left and drift of the output as neurons are moved in rank order; points on demand."""

    def __init__(self, trial: Trial, ranking: Ranking, base: NeuronSet):
        self.trial = trial
        self.ranking = ranking
        self.base = base  # moved at every point, before the ranking's own
        self._points: dict[int, CurvePoint] = {}

    def __getitem__(self, k: int) -> CurvePoint:
        if k not in self._points:
            result = self.trial.shifted([*self.base, *(row[:2] for row in self.ranking[:k])])
            self._points[k] = CurvePoint(k, self.trial.left(result), float(result.drift.mean()))
        return self._points[k]

    @property
    def points(self) -> list[CurvePoint]:
        """The points measured, by k."""
        return [self._points[k] for k in sorted(self._points)]

    def least_k(self, suppress_to: float, limit: int) -> int | None:
        """Fewest neurons that leave at most this share: by doubling, then by halving the gap."""
        failed, k = 0, 1
        while self[k].outliers_left > suppress_to:
            if k >= limit:
                return None
            failed, k = k, min(2 * k, limit)
        while k - failed > 1:
            middle = (failed + k) // 2
            if self[middle].outliers_left > suppress_to:
                failed = middle
            else:
                k = middle
        return k


def clear_gap(ranking: Ranking, least: float) -> int:
    """How many neurons stand before the last clear gap of the ranking; 0 if there is none.

    Args:
        ranking: best first.
        least: scores below this are noise.
    """
    gaps = [
        place + 1
        for place, (row, following) in enumerate(zip(ranking, ranking[1:], strict=False))
        if row[2] >= least and row[2] >= CLEAR_GAP * max(following[2], 0.0)
    ]
    return gaps[-1] if gaps else 0


@dataclass(frozen=True)
class Choice:
    """The neurons taken, and why as many."""

    neurons: NeuronSet
    """The first k of the ranking."""
    ranking: Ranking
    """All searched neurons, best first."""
    k: int
    """How many are taken."""
    curve: list[CurvePoint]
    """What was measured on the way."""
    caveats: tuple[str, ...]
    """Where the choice falls short."""


def choose_neurons(
    trial: Trial, ranking: Ranking, config: FindConfig, least: float, base: NeuronSet | None = None
) -> Choice:
    """As few of the best neurons as suppress the outliers; then those behind them up to a clear gap.

    The second part matters where neurons start what others amplify: they write little themselves,
    yet stand clear of the rest. It is for projections only, which have a unit.

    Args:
        trial: held-out images.
        ranking: searched neurons, best first.
        config: top_k, suppress_to, guard and score are used.
        least: scores below this are noise; for a projection.
        base: neurons that are moved already.
    """
    base = NeuronSet() if base is None else base
    curve = GreedyCurve(trial, ranking, base)
    k, caveats = _count(curve, config, least)
    if curve[k].drift > config.guard and config.top_k is None:
        within = [point.k for point in curve.points if point.k and point.drift <= config.guard]
        caveats += (
            f"Moving {k} neurons changes the output by {curve[k].drift:.2f} (1 - cosine), more than "
            f"the guard of {config.guard:g}; {max(within, default=1)} are taken.",
        )
        k = max(within, default=1)
    return Choice(NeuronSet.of([r[:2] for r in ranking[:k]]), ranking, k, curve.points, caveats)


def _count(curve: GreedyCurve, config: FindConfig, least: float) -> tuple[int, tuple[str, ...]]:
    limit = min(MOST_NEURONS, len(curve.ranking))
    if config.top_k is not None:
        return min(config.top_k, len(curve.ranking)), ()
    needed = curve.least_k(config.suppress_to, limit)
    if needed is None:
        best = min(curve.points, key=lambda point: (point.outliers_left, point.k))
        return best.k, (
            f"Even {limit} neurons leave {curve[limit].outliers_left:.0%} of the outliers (wanted: "
            f"{config.suppress_to:.0%}); {best.k} leave the fewest, {best.outliers_left:.0%}.",
        )
    gap = clear_gap(curve.ranking[:limit], least) if config.score == "projection" else 0
    return max(needed, gap), ()
