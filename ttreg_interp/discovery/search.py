"""One search: from the sums of a scoring pass to the neurons taken."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from ttreg_interp.discovery.calibrate import (
    Choice,
    Ranking,
    choose_neurons,
    search_range,
)
from ttreg_interp.discovery.exact import ExactSums
from ttreg_interp.discovery.progress import counted
from ttreg_interp.discovery.scores import NeuronScores, read_scores
from ttreg_interp.discovery.scoring import ScoringRun
from ttreg_interp.discovery.stream import WHOLE, Part
from ttreg_interp.discovery.survey import Detection
from ttreg_interp.discovery.trial import Trial
from ttreg_interp.interventions.neuron_set import NeuronSet

MAX_HELD_OUT = 32
"""Held-out images that calibration and evidence use."""


@dataclass(frozen=True)
class Search:
    """What one search found, and on which images it was tried."""

    scores: NeuronScores
    """Of all neurons of the layers up to the detection layer."""
    searched: range
    """Layers that were searched."""
    ranking: Ranking
    """Their neurons, best first, without those that were moved already."""
    trial: Trial
    """The held-out images."""
    choice: Choice
    """The neurons taken."""
    caveats: tuple[str, ...]
    """Where the search falls short."""

    @property
    def reach(self) -> int:
        """Place in the ranking of the last neuron taken, from 1."""
        return 1 + max(self.ranking.index(row) for row in self.choice.chosen)


def search(
    run: ScoringRun, detection: Detection, sums: ExactSums, base: NeuronSet | None = None
) -> Search:
    """Rank the neurons and take as many as the held-out images ask for.

    Args:
        run: model, images and configuration.
        detection: how outliers are told.
        sums: of the scoring pass.
        base: neurons that were moved to a register during that pass.
    """
    base = NeuronSet() if base is None else base
    scores = read_scores(run.model, run.layers(detection.detect_layer), sums)
    searched = search_range(run.model, run.config, scores, detection.detect_layer)
    first_layer = min(searched.start, *(layer for layer, _ in base.layers), detection.detect_layer)
    assert run.config.score is not None
    known = set(base)
    ranking = [row for row in scores.ranking(run.config.score, searched) if row[:2] not in known]
    with counted("choice", run.progress) as tick:
        trial, caveats = with_held_out(run, Trial(run.model, detection, first_layer, base, tick))
        choice = choose_neurons(trial, ranking, run.config, scores.excess)
    return Search(scores, searched, ranking, trial, choice, (*caveats, *choice.caveats))


def with_held_out(run: ScoringRun, trial: Trial) -> tuple[Trial, tuple[str, ...]]:
    """A trial with the held-out images of a run, and what is to be said about them."""
    _, held_out = Part.split(run.config.held_out)
    held = trial.with_images(_collect(run, held_out))
    if held.outliers.sum() > 0:
        return held, ()
    return trial.with_images(_collect(run, WHOLE)), (
        "No held-out image has outliers, so the number of neurons and the evidence rest on images "
        "that also gave the scores. Give more images.",
    )


def _collect(run: ScoringRun, part: Part) -> Iterator[Tensor]:
    """The first `MAX_HELD_OUT` images of a part, in batches."""
    left = MAX_HELD_OUT
    for batch in run.stream.batches(part):
        pixels = batch.pixels[:left]
        left -= len(pixels)
        yield pixels
        if not left:
            return
