"""Classification: the model's own classes, and classes from text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ttreg_interp.data.annotated import Annotated
from ttreg_interp.errors import DataError
from ttreg_interp.evaluations.arms import Run
from ttreg_interp.evaluations.base import Evaluation, Kept, Prepared, Scored
from ttreg_interp.evaluations.features import observed
from ttreg_interp.evaluations.records import Records
from ttreg_interp.evaluations.text import Prompts, activation_notes, classifier_of
from ttreg_interp.hooked import HookedViT
from ttreg_interp.metrics.classification import topk_correct, zero_shot_logits
from ttreg_interp.metrics.set_scores import Mean


def preprocessed(model: HookedViT, image: Image.Image) -> Tensor:
    """An image by the model's own preprocessing.

    Raises:
        DataError: it has none.
    """
    if model.preprocess is None:
        raise DataError(f"{model.cfg.model_name} has no preprocessing. Set model.preprocess.")
    return model.preprocess(image)


@dataclass(frozen=True)
class Classification(Evaluation):
    """Top-1 and top-5 of a classifier with its own head."""

    title: ClassVar[str] = "classification"
    kinds: ClassVar[tuple[type, ...]] = (int,)
    source: ClassVar[str] = "top-k accuracy of the model's own head, its own preprocessing"

    def check(self, runs: Sequence[Run], data: Mapping[str, Annotated[Any]]) -> None:
        """See Evaluation; also refuses models without classes."""
        super().check(runs, data)
        for run in runs:
            if not run.model.parts.is_classifier:
                raise DataError(
                    f"{run.model.cfg.model_name} returns no logits. Classify it from text "
                    "(zero-shot) or by a probe (linear-probe, knn)."
                )

    def prepare(self, model: HookedViT, image: Image.Image, target: Any) -> Prepared:
        """See Evaluation."""
        return Prepared(preprocessed(model, image), target)

    def measure(self, run: Run, pixels: Tensor, targets: list[Any], context: Any) -> Kept:
        """See Evaluation."""
        output = observed(run.model, run.intervention, pixels).output
        return _correct(output, torch.tensor(targets, device=output.device))

    def score(
        self, records: Mapping[str, Records], arm: Run, data: Mapping[str, Annotated]
    ) -> Scored:
        """See Evaluation."""
        return _top_k(records["test"], arm.name)


@dataclass(frozen=True)
class ZeroShot(Evaluation):
    """Zero-shot classification: images against classes described in text.

    Source:
        Radford et al., arXiv 2103.00020, section 3.1.4; arXiv 2506.08010, tables 3 and 7.
    """

    title: ClassVar[str] = "zero-shot classification"
    kinds: ClassVar[tuple[type, ...]] = (int,)
    source: ClassVar[str] = "arXiv 2103.00020, section 3.1.4; arXiv 2506.08010, tables 3 and 7"

    prompts: Prompts = Prompts()
    """Class names and templates."""

    def context(self, model: HookedViT, data: Mapping[str, Annotated[Any]]) -> Any:
        """The class directions of the model."""
        return classifier_of(model, self.prompts, data["test"].classes)

    def notes(self, model: HookedViT) -> Mapping[str, Any]:
        """Activation function, and whether it is the one that the weights were trained with."""
        return activation_notes(model)

    def prepare(self, model: HookedViT, image: Image.Image, target: Any) -> Prepared:
        """See Evaluation."""
        return Prepared(preprocessed(model, image), target)

    def measure(
        self, run: Run, pixels: Tensor, targets: list[Any], context: Float[Tensor, "class output"]
    ) -> Kept:
        """See Evaluation."""
        output = observed(run.model, run.intervention, pixels).output
        logits = zero_shot_logits(output, context)
        return _correct(logits, torch.tensor(targets, device=output.device))

    def score(
        self, records: Mapping[str, Records], arm: Run, data: Mapping[str, Annotated]
    ) -> Scored:
        """See Evaluation."""
        return _top_k(records["test"], arm.name)


def _correct(logits: Float[Tensor, "batch class"], labels: Tensor) -> Kept:
    k = min(5, logits.shape[1])
    return {"top-1": topk_correct(logits, labels), "top-5": topk_correct(logits, labels, k)}


def _top_k(records: Records, arm: str) -> Scored:
    columns = ("top-1", "top-5")
    return Scored({f"{k} %": Mean(records.column(arm, k), scale=100) for k in columns})
