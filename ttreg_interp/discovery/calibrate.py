"""Choices that the data make: the layers to search, and how many neurons to take."""

from dataclasses import asdict, dataclass
from typing import Any

from ttreg_interp.discovery.capture import resolve_layer
from ttreg_interp.discovery.config import FindConfig
from ttreg_interp.discovery.scores import NeuronScores
from ttreg_interp.discovery.trial import Effect, Trial
from ttreg_interp.errors import DataError
from ttreg_interp.interventions.neuron_set import NeuronSet
from ttreg_interp.metrics.intervals import mean_interval

LAYER_SHARE = 0.005
"""A layer is searched if its neurons wrote at least this share of the outliers' excess."""
NEURON_SHARE = 0.001
"""No neuron below this share of the outliers' excess makes outliers."""
MOST_NEURONS = 512
"""No more than these are tried."""
MOST_BEHIND = 64
"""No more than these are tried one by one."""
LEAST_EFFECT = 0.005
"""A neuron behind those needed joins if moving it takes this share of the outliers' norm away."""
ALONG = 0.75
"""And this part of the share that it wrote: moving what was written across an outlier, as a neuron
does that fires because of it, takes half of that share of the norm away; along it, all of it."""
PROMINENT = 1.2
"""Former outliers stand out if they are this many times as long as the median token."""

Row = tuple[int, int, float]
"""Layer, neuron, score."""
Ranking = list[Row]


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

    def __init__(self, trial: Trial, ranking: Ranking):
        self.trial = trial
        self.ranking = ranking
        self._points: dict[int, CurvePoint] = {}

    def __getitem__(self, k: int) -> CurvePoint:
        if k not in self._points:
            self._points[k] = self._measure(self.ranking[:k])
        return self._points[k]

    def _measure(self, rows: Ranking) -> CurvePoint:
        result = self.trial.run(self.trial.register(_pairs(rows)))
        return CurvePoint(len(rows), self.trial.left(result), float(result.drift.mean()))

    def of(self, rows: Ranking) -> CurvePoint:
        """The point of any rows, the first of the ranking or not."""
        return self[len(rows)] if rows == self.ranking[: len(rows)] else self._measure(rows)

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


@dataclass(frozen=True)
class Choice:
    """The neurons taken, and why these."""

    chosen: Ranking
    """Rows of the ranking."""
    outcome: CurvePoint
    """What moving them does to the held-out images."""
    curve: list[CurvePoint]
    """What was measured on the way."""
    caveats: tuple[str, ...] = ()
    """Where the choice falls short."""

    @property
    def neurons(self) -> NeuronSet:
        """The neurons taken."""
        return NeuronSet.of([row[:2] for row in self.chosen])


def choose_neurons(trial: Trial, ranking: Ranking, config: FindConfig, excess: float) -> Choice:
    """As few of the best neurons as suppress the outliers; then those behind them that cause some.

    The second part finds neurons that start what others amplify: they write little themselves, yet
    the outliers of held-out images shrink when one of them alone is moved. It needs a score with a
    unit, so it is for projections only.

    Args:
        trial: held-out images.
        ranking: searched neurons, best first.
        config: top_k, suppress_to, guard and score are used.
        excess: of the outliers, the unit of projections.
    """
    curve = GreedyCurve(trial, ranking)
    chosen, caveats = _chosen(curve, config, excess)
    _ = curve[min(2 * len(chosen), len(ranking))]  # shows whether the curve is flat from there
    return Choice(chosen, curve.of(chosen), curve.points, caveats)


def _chosen(
    curve: GreedyCurve, config: FindConfig, excess: float
) -> tuple[Ranking, tuple[str, ...]]:
    """Rows of the ranking, and what is to be said about them."""
    ranking = curve.ranking
    if config.top_k is not None:
        return ranking[: config.top_k], ()
    limit = min(MOST_NEURONS, len(ranking))
    k = curve.least_k(config.suppress_to, limit)
    if k is None:
        return _best_of(curve, config, limit)
    if curve[k].drift > config.guard:
        return _within_guard(curve, config, k)
    needed = ranking[:k]
    if config.score == "projection":
        behind = [row for row in ranking[k : k + MOST_BEHIND] if row[2] >= NEURON_SHARE * excess]
        more = needed
        if behind:
            more = needed + _behind(curve.trial, needed, behind, excess, config.seed)
        if curve.of(more).drift <= config.guard:
            return more, ()
    return needed, ()


def _behind(trial: Trial, needed: Ranking, rows: Ranking, excess: float, seed: int) -> Ranking:
    """Those of the rows that cause outliers too, told by moving one at a time.

    First on the intact model, where what starts an outlier takes more away than it wrote itself.
    Then, if the former outliers still stand out once these are moved, on what is left of them: where
    a norm evens out what one neuron adds, each seems idle as long as the others are there.
    """
    effects = trial.effects(_pairs(rows))
    starts = [
        row
        for row, effect in zip(rows, effects, strict=True)
        if _shrinks(effect, max(LEAST_EFFECT, ALONG * row[2] / excess), seed)
    ]
    moved = needed + starts
    if trial.prominence(_pairs(moved)) < PROMINENT:
        return starts
    idle = [row for row in rows if row not in starts]
    effects = trial.effects(_pairs(idle), _pairs(moved))
    return starts + [
        row
        for row, effect in zip(idle, effects, strict=True)
        if _shrinks(effect, LEAST_EFFECT, seed)
    ]


def _shrinks(effect: Effect, least: float, seed: int) -> bool:
    """Whether the outliers shrink by at least that, and beyond doubt over images at all."""
    shrinkage = effect.shrinkage
    if float(shrinkage.mean()) < least:
        return False
    return len(shrinkage) < 2 or mean_interval(shrinkage, seed).low > 0


def _pairs(rows: Ranking) -> list[tuple[int, int]]:
    return [row[:2] for row in rows]


def _best_of(curve: GreedyCurve, config: FindConfig, limit: int) -> tuple[Ranking, tuple[str, ...]]:
    """Where the outliers stay: what leaves the fewest."""
    best = min(curve.points, key=lambda point: (point.outliers_left, point.k))
    caveat = (
        f"Even {limit} neurons leave {curve[limit].outliers_left:.0%} of the outliers (wanted: "
        f"{config.suppress_to:.0%}); the {best.k} taken leave {best.outliers_left:.0%}."
    )
    return curve.ranking[: best.k], (caveat,)


def _within_guard(
    curve: GreedyCurve, config: FindConfig, k: int
) -> tuple[Ranking, tuple[str, ...]]:
    """Where suppressing the outliers costs too much: as many neurons as the guard lets pass."""
    within = [point.k for point in curve.points if point.drift <= config.guard]
    taken = max(within, default=1)
    caveat = (
        f"Moving the {k} neurons that suppress the outliers changes the output by "
        f"{curve[k].drift:.2f} (1 - cosine), more than the guard of {config.guard:g}; {taken} are "
        f"taken, with {curve[taken].drift:.2f}. Raise the guard, or search other layers."
    )
    return curve.ranking[:taken], (caveat,)
