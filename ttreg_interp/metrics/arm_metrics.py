"""What `compare` measures of an arm: one number for every image."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ttreg_interp.errors import DataError
from ttreg_interp.metrics.arm_runs import ArmRun
from ttreg_interp.metrics.classification import topk_correct
from ttreg_interp.metrics.norms import max_over_median
from ttreg_interp.metrics.similarity import cosine, kl_of_logits, relative_change

Labels = Int[Tensor, " batch"]
Numbers = Shaped[Tensor, " batch"]
Logits = Callable[[Tensor], Tensor]
"""Outputs [batch, output] to logits [batch, class]: a zero-shot classifier, a linear probe."""


@dataclass(frozen=True)
class ArmMetric(ABC):
    """One number for every image of an arm. Write another kind to measure something else."""

    title: ClassVar[str]
    """What it is, in a word or two."""
    against_intact: ClassVar[bool] = False
    """Whether the number itself compares with the intact model, so that no difference is taken."""

    @property
    def name(self) -> str:
        """As tables call it."""
        return self.title

    def on(self, n_layers: int) -> "ArmMetric":
        """The same for a model of `n_layers` blocks."""
        return self

    @property
    def norm_layers(self) -> tuple[int, ...]:
        """Blocks of which it reads residual norms."""
        return ()

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Blocks of which it reads the attention of [CLS]."""
        return ()

    @abstractmethod
    def measure(self, run: ArmRun, intact: ArmRun, labels: Labels | None) -> Numbers:
        """The number for every image of a batch.

        Args:
            run: the arm.
            intact: the intact model on the same images.
            labels: the images' classes, where they are known.
        """


@dataclass(frozen=True)
class RelativeChange(ArmMetric):
    """||output - intact|| / ||intact||."""

    title: ClassVar[str] = "relative change"
    against_intact: ClassVar[bool] = True

    def measure(self, run: ArmRun, intact: ArmRun, labels: Labels | None) -> Numbers:
        """See ArmMetric."""
        return relative_change(run.output, intact.output)


@dataclass(frozen=True)
class Cosine(ArmMetric):
    """Cosine between the output and the intact model's."""

    title: ClassVar[str] = "cosine"
    against_intact: ClassVar[bool] = True

    def measure(self, run: ArmRun, intact: ArmRun, labels: Labels | None) -> Numbers:
        """See ArmMetric."""
        return cosine(run.output, intact.output)


@dataclass(frozen=True)
class OfLogits(ArmMetric):
    """A metric that reads logits."""

    logits: Logits | None = None
    """What makes logits of the output; None: the output holds them."""

    def _logits(self, run: ArmRun) -> Float[Tensor, "batch class"]:
        return run.output if self.logits is None else self.logits(run.output)


@dataclass(frozen=True)
class KL(OfLogits):
    """Divergence of the class probabilities from the intact model's, sum_c p_c (ln p_c - ln q_c), nats."""

    title: ClassVar[str] = "KL"
    against_intact: ClassVar[bool] = True

    def measure(self, run: ArmRun, intact: ArmRun, labels: Labels | None) -> Numbers:
        """See ArmMetric."""
        return kl_of_logits(self._logits(intact), self._logits(run))


@dataclass(frozen=True)
class SameTop1(OfLogits):
    """Whether the highest logit is that of the intact model."""

    title: ClassVar[str] = "same top-1"
    against_intact: ClassVar[bool] = True

    def measure(self, run: ArmRun, intact: ArmRun, labels: Labels | None) -> Numbers:
        """See ArmMetric."""
        return topk_correct(self._logits(run), self._logits(intact).argmax(dim=1))


@dataclass(frozen=True)
class Top1(OfLogits):
    """Whether the highest logit is that of the image's class."""

    title: ClassVar[str] = "top-1"

    def measure(self, run: ArmRun, intact: ArmRun, labels: Labels | None) -> Numbers:
        """See ArmMetric.

        Raises:
            DataError: no labels.
        """
        if labels is None:
            raise DataError("Top1 needs classes: compare(..., labels=[...]), one for every image.")
        return topk_correct(self._logits(run), labels)


@dataclass(frozen=True)
class AtLayer(ArmMetric):
    """A metric of one block."""

    layer: int = -1
    """Which; negative numbers count from the end."""

    @property
    def name(self) -> str:
        """As tables call it."""
        return f"{self.title}, block {self.layer}"

    def on(self, n_layers: int) -> "ArmMetric":
        """The same, its layer counted from the front.

        Raises:
            DataError: a layer that the model does not have.
        """
        if not -n_layers <= self.layer < n_layers:
            raise DataError(
                f"{type(self).__name__}(layer={self.layer}): the model has blocks 0 to {n_layers - 1}."
            )
        return replace(self, layer=self.layer % n_layers)


@dataclass(frozen=True)
class MaxOverMedian(AtLayer):
    """Largest over median residual norm of an image's patches: about 1 without outliers."""

    title: ClassVar[str] = "max/median norm"

    @property
    def norm_layers(self) -> tuple[int, ...]:
        """See ArmMetric."""
        return (self.layer,)

    def measure(self, run: ArmRun, intact: ArmRun, labels: Labels | None) -> Numbers:
        """See ArmMetric."""
        return max_over_median(run.patch_norms(self.layer)[None])[0]


@dataclass(frozen=True)
class OutlierCount(AtLayer):
    """Patches of an image whose residual norm exceeds a threshold.

    The threshold is the same for every arm; find it on the intact model, since one found on an edited
    model would move with what it should measure.
    """

    title: ClassVar[str] = "outliers"
    threshold: float = field(kw_only=True)
    """A norm; a patch at the threshold is no outlier."""

    @property
    def name(self) -> str:
        """As tables call it."""
        return f"{self.title} > {self.threshold:g}, block {self.layer}"

    @property
    def norm_layers(self) -> tuple[int, ...]:
        """See ArmMetric."""
        return (self.layer,)

    def measure(self, run: ArmRun, intact: ArmRun, labels: Labels | None) -> Numbers:
        """See ArmMetric."""
        return (run.patch_norms(self.layer) > self.threshold).sum(dim=1)


@dataclass(frozen=True)
class RegisterAttention(AtLayer):
    """Attention of [CLS] on all registers, trained and test-time ones; mean over heads."""

    title: ClassVar[str] = "attention on registers"

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """See ArmMetric."""
        return (self.layer,)

    def measure(self, run: ArmRun, intact: ArmRun, labels: Labels | None) -> Numbers:
        """See ArmMetric."""
        return run.register_attention(self.layer).mean(dim=1)
