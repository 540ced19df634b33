"""Searching again on the edited model: new outliers may grow once the first ones are moved."""

from dataclasses import dataclass
from typing import Any

from ttreg_interp.discovery.calibrate import NEURON_SHARE, Choice, choose_neurons
from ttreg_interp.discovery.checkpoint import RunState
from ttreg_interp.discovery.distributed import current_shard, summed
from ttreg_interp.discovery.exact import ExactSums
from ttreg_interp.discovery.observe import Observer
from ttreg_interp.discovery.scores import add_batch, read_scores
from ttreg_interp.discovery.scoring import ScoringRun
from ttreg_interp.discovery.trial import Trial
from ttreg_interp.interventions.neuron_set import NeuronSet
from ttreg_interp.interventions.registers import TestTimeRegister


@dataclass(frozen=True)
class Recursion:
    """What one further search found."""

    neurons: NeuronSet
    """New neurons; none if the edited model has no outliers left."""
    ranking: tuple[tuple[int, int, float], ...]
    """The new neurons with their scores, best first."""
    images_with_outliers: int
    """Images in which the edited model still had outliers."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "images_with_outliers": self.images_with_outliers,
            "ranking": [list(row) for row in self.ranking],
        }


def search_again(
    run: ScoringRun, state: RunState, trial: Trial, found: NeuronSet, searched: range
) -> list[Recursion]:
    """Search `config.recursions` times more, each time with all neurons found so far moved away.

    Threshold and detection layer stay those of the intact model.

    Source:
        arXiv 2605.05206, recursive test-time registers.
    """
    results: list[Recursion] = []
    for _ in range(run.config.recursions):
        sums = _edited_sums(run, state, found, searched)
        n_images = sums.whole("images")
        if not n_images:
            return [*results, Recursion(NeuronSet(), (), 0)]
        choice = _choose(run, trial, found, searched, sums)
        results.append(Recursion(choice.neurons, tuple(choice.chosen), n_images))
        found = found | choice.neurons
    return results


def _edited_sums(run: ScoringRun, state: RunState, found: NeuronSet, searched: range) -> ExactSums:
    observer = Observer(run.model, state.detection, searched, run.config.sparsity)
    sums, shard = ExactSums(), current_shard()
    with run.model.intervened(TestTimeRegister(found)):
        for number, batch in enumerate(run.batches()):
            if shard.takes(number):
                add_batch(sums, observer, batch, run.config.seed)
    return summed(sums)


def _choose(
    run: ScoringRun, trial: Trial, found: NeuronSet, searched: range, sums: ExactSums
) -> Choice:
    scores = read_scores(run.model, searched, sums)
    known = set(found)
    assert run.config.score is not None
    ranking = [row for row in scores.ranking(run.config.score) if row[:2] not in known]
    return choose_neurons(trial, ranking, run.config, NEURON_SHARE * scores.excess, base=found)
