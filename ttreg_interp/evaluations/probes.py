"""Probes of frozen image features: logistic regression, SGD and nearest neighbours."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from torch import Tensor

from ttreg_interp.data.annotated import Annotated
from ttreg_interp.evaluations.arms import Run
from ttreg_interp.evaluations.base import Evaluation, Kept, Prepared, Scored
from ttreg_interp.evaluations.classification import preprocessed
from ttreg_interp.evaluations.features import Token, image_vectors
from ttreg_interp.evaluations.folds import (
    checked_or_crossed,
    folds,
    others,
    over_seeds,
    probe_device,
)
from ttreg_interp.evaluations.records import Records
from ttreg_interp.hooked import HookedViT
from ttreg_interp.metrics.classification import Labelled, knn_votes, topk_correct
from ttreg_interp.metrics.probes import LogisticProbe, Probe, SGDProbe, linear_probe
from ttreg_interp.metrics.set_scores import Mean


@dataclass(frozen=True)
class OfFeatures(Evaluation):
    """A protocol on one frozen vector for each image."""

    kinds: ClassVar[tuple[type, ...]] = (int,)

    token: Token = "cls"
    """Which vector stands for an image: any token of the layout, or the model's output."""
    folds: int = 5
    """Parts of cross-validation, where there is no training set."""

    def check(self, runs: Sequence[Run], data: Mapping[str, Annotated[Any]]) -> None:
        """See Evaluation."""
        super().check(runs, checked_or_crossed(data))

    def prepare(self, model: HookedViT, image: Image.Image, target: Any) -> Prepared:
        """See Evaluation."""
        return Prepared(preprocessed(model, image), target)

    def measure(self, run: Run, pixels: Tensor, targets: list[Any], context: Any) -> Kept:
        """See Evaluation."""
        vectors = image_vectors(run.model, run.intervention, pixels, self.token)
        return {"features": vectors.float(), "label": torch.tensor(targets)}

    def score(
        self, records: Mapping[str, Records], arm: Run, data: Mapping[str, Annotated]
    ) -> Scored:
        """See Evaluation."""
        sets = {split: _labelled(one, arm) for split, one in records.items()}
        test = sets["test"]
        if "train" in sets:
            return self._told([self._fit(sets["train"], test)], None)
        parts = folds(len(test), self.folds)
        return self._told([self._fit(test[others(p, len(test))], test[p]) for p in parts], parts)

    def _told(self, found: list[dict[str, Any]], parts: list[Tensor] | None) -> Scored:
        """Correctness of all test images, in order; and what each fit chose."""
        correct = torch.cat([one.pop("correct") for one in found], dim=1).double()
        if parts is not None:
            correct = correct[:, torch.cat(parts).argsort()]
        details: dict[str, Any] = {"fits": found}
        per_seed = (100 * correct.mean(dim=1)).tolist()
        if len(per_seed) > 1:
            details["over seeds"] = over_seeds(per_seed).to_dict()
        return Scored({"top-1 %": Mean(correct.mean(dim=0), scale=100)}, details)

    @abstractmethod
    def _fit(self, train: Labelled, test: Labelled) -> dict[str, Any]:
        """'correct' [seed, image] of the test images, and what else is to be told."""


def _labelled(records: Records, arm: Run) -> Labelled:
    features = records.rows(arm.name, "features", probe_device(arm.model))
    return Labelled(features, records.column(arm.name, "label"))


@dataclass(frozen=True)
class LinearProbe(OfFeatures):
    """Linear classifiers over a grid that is chosen on held-out training images, several seeds.

    Source:
        arXiv 2304.07193 (linear evaluation); arXiv 2506.08010, tables 1, 2, 10 and 13.
    """

    title: ClassVar[str] = "linear probe"
    source: ClassVar[str] = "arXiv 2304.07193, linear evaluation; arXiv 2506.08010, tables 1 and 2"

    method: Literal["lbfgs", "sgd"] = "lbfgs"
    """Logistic regression by L-BFGS over penalties, or SGD over learning rates."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One probe each."""
    grid: tuple[float, ...] = ()
    """Penalties or learning rates; empty: the method's own."""

    def _fit(self, train: Labelled, test: Labelled) -> dict[str, Any]:
        kind: type[Probe] = LogisticProbe if self.method == "lbfgs" else SGDProbe
        probe = kind(grid=self.grid, seeds=self.seeds) if self.grid else kind(seeds=self.seeds)
        found = linear_probe(train, test, probe)
        return {
            "correct": found.correct,
            "grid": list(probe.grid),
            "chosen": list(found.chosen),
            "chosen at the edge of the grid": found.at_edge,
        }


@dataclass(frozen=True)
class NearestNeighbours(OfFeatures):
    """Votes of the k nearest training images, weighted by exp(cosine / temperature).

    Source:
        arXiv 1805.01978, section 3.4; protocol of arXiv 2104.14294.
    """

    title: ClassVar[str] = "nearest neighbours"
    source: ClassVar[str] = "arXiv 1805.01978, section 3.4; arXiv 2104.14294"

    k: int = 20
    """Neighbours."""
    temperature: float = 0.07
    """Smaller lets the nearest decide."""

    def _fit(self, train: Labelled, test: Labelled) -> dict[str, Any]:
        votes = knn_votes(train, test.features, self.k, self.temperature).cpu()
        missing = test.labels >= votes.shape[1]  # classes that the bank lacks
        labels = torch.where(missing, 0, test.labels)
        return {"correct": (topk_correct(votes, labels) & ~missing)[None]}
