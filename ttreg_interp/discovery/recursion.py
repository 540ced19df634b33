"""Searching again on the edited model: new outliers may grow once the first ones are moved."""

from dataclasses import dataclass
from typing import Any

from ttreg_interp.discovery.calibrate import Ranking
from ttreg_interp.discovery.distributed import agreed, current_shard, summed
from ttreg_interp.discovery.exact import ExactSums
from ttreg_interp.discovery.progress import shown
from ttreg_interp.discovery.scores import GROUP, score_neurons
from ttreg_interp.discovery.scoring import ScoringRun
from ttreg_interp.discovery.search import search
from ttreg_interp.discovery.survey import Detection, detect
from ttreg_interp.interventions.neuron_set import NeuronSet
from ttreg_interp.interventions.registers import TestTimeRegister


@dataclass(frozen=True)
class Recursion:
    """What one further search found."""

    detection: Detection
    """How the outliers of the edited model are told."""
    ranking: Ranking
    """The new neurons with their scores, best first; none if no outliers are left."""
    images_with_outliers: int
    """Images in which the edited model still had outliers."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        some = self.images_with_outliers > 0
        return {
            "detect_layer": self.detection.detect_layer,
            "threshold": self.detection.threshold.value if some else None,
            "images_with_outliers": self.images_with_outliers,
            "ranking": [list(row) for row in self.ranking],
        }


def search_again(run: ScoringRun, found: NeuronSet) -> list[Recursion]:
    """Search `config.recursions` times more, each time with all neurons found so far moved away.

    Each search surveys the edited model, whose outliers may be others, at another layer.

    Source:
        arXiv 2605.05206, recursive test-time registers.
    """
    results: list[Recursion] = []
    for _ in range(run.config.recursions if len(found) else 0):
        with run.model.intervened(TestTimeRegister(found)):
            detection = detect(run.model, agreed(run.survey), run.config)
            sums = _scored(run, detection)
        n_images = sums.whole("images")
        if not n_images:
            return [*results, Recursion(detection, [], 0)]
        choice = search(run, detection, sums, base=found).choice
        results.append(Recursion(detection, choice.chosen, n_images))
        found = found | choice.neurons
    return results


def _scored(run: ScoringRun, detection: Detection) -> ExactSums:
    shard = current_shard()
    own = run.batches(lambda number: shard.takes(number // GROUP))
    batches = shown(own, "scores", run.progress)
    return summed(score_neurons(run.observer(detection), batches, run.config.seed))
