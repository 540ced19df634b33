"""A trial: held-out images, run under interventions and compared with the intact model."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ttreg_interp.discovery.capture import token_norms
from ttreg_interp.discovery.survey import Detection, candidate_rows
from ttreg_interp.errors import LayoutError
from ttreg_interp.interventions.base import Empty, Intervention
from ttreg_interp.interventions.neuron_set import NeuronSet
from ttreg_interp.interventions.registers import ExtraTokens, TestTimeRegister

Pairs = Iterable[tuple[int, int]]


@dataclass(frozen=True)
class ArmResult:
    """Held-out images under one intervention."""

    outliers: Float[Tensor, " image"]
    """Outliers of each image."""
    drift: Float[Tensor, " image"]
    """1 - cosine of the output to the intact model's."""


@dataclass(frozen=True)
class Effect:
    """What moving one neuron does to the outliers of held-out images, against a bare register."""

    shrinkage: Float[Tensor, " image"]
    """1 - |x_t| with it moved / |x_t| without, t the places of the image's outliers: what it writes
    counts, and what others write because of it. Images with outliers only."""
    outliers_left: float
    """Share of the outliers that is left."""


@dataclass(frozen=True)
class Start:
    """Some images as they reach the trial's first layer; no arm changes anything else before it."""

    plain: Float[Tensor, "batch token d_model"]
    """The residual stream."""
    with_register: Float[Tensor, "batch longer d_model"]
    """The same with a bare register."""
    image_size: tuple[int, int]
    """Height and width of the images, in pixels."""


@dataclass(frozen=True)
class TrialBatch:
    """Some of the held-out images, before anything is tried."""

    start: Start
    """Where their forward passes begin."""
    output: Float[Tensor, "batch output"]
    """The intact model's output."""
    outliers: Bool[Tensor, "batch candidate"]
    """Which candidate tokens are outliers, with the base moved."""


@dataclass(frozen=True)
class Trial:
    """Held-out images, and what the model makes of them before anything is tried."""

    model: Any
    """A HookedViT."""
    detection: Detection
    """How outliers are told: one threshold for every arm."""
    first_layer: int
    """The first layer in which an arm may change anything: forward passes begin there."""
    base: NeuronSet
    """Neurons that are moved to a register in every arm but the intact one."""
    tick: Callable[[int], Any] = lambda n_images: None
    """Told of every batch that was run."""
    batches: tuple[TrialBatch, ...] = ()
    """The images."""

    def with_images(self, batches: Iterable[Tensor]) -> "Trial":
        """The same with these images, run once; with a base, once more with that moved."""
        return replace(self, batches=tuple(self._begun(pixels) for pixels in batches))

    @torch.no_grad()
    def _begun(self, pixels: Tensor) -> TrialBatch:
        plain = self.model(pixels, stop_at_layer=self.first_layer)
        with self.model.intervened(ExtraTokens()):
            with_register = self.model(pixels, stop_at_layer=self.first_layer)
        start = Start(plain, with_register, (pixels.shape[2], pixels.shape[3]))
        output, outliers = self._run(start, Empty())
        if len(self.base):
            _, outliers = self._run(start, self.register(()))
        return TrialBatch(start, output, outliers)

    @property
    def outliers(self) -> Float[Tensor, " image"]:
        """Outliers of each image, with the base moved."""
        counts = [batch.outliers.sum(dim=1).cpu().double() for batch in self.batches]
        return torch.cat(counts) if counts else torch.zeros(0, dtype=torch.float64)

    @property
    def n_images(self) -> int:
        """Held-out images."""
        return len(self.outliers)

    def register(self, neurons: Pairs) -> Intervention:
        """These neurons and the base moved to a test-time register."""
        moved = self._moved(neurons)
        return TestTimeRegister(moved) if len(moved) else ExtraTokens()

    def _moved(self, neurons: Pairs) -> NeuronSet:
        """These neurons and the base.

        Raises:
            LayoutError: one lies before the trial's first layer, where nothing would move it.
        """
        moved = NeuronSet.of([*self.base, *neurons])
        if before := [layer for layer, _ in moved.layers if layer < self.first_layer]:
            raise LayoutError(
                f"Neurons of layer {before[0]} cannot be moved in a trial whose forward passes begin "
                f"at layer {self.first_layer}. Begin it at layer {before[0]}."
            )
        return moved

    def run(self, intervention: Intervention) -> ArmResult:
        """The images under an intervention that acts from the trial's first layer on."""
        outliers, drift = [], []
        for batch in self.batches:
            output, found = self._run(batch.start, intervention)
            outliers.append(found.sum(dim=1).cpu().double())
            drift.append(1 - torch.cosine_similarity(output, batch.output, dim=-1).cpu())
        return ArmResult(torch.cat(outliers), torch.cat(drift))

    def left(self, result: ArmResult) -> float:
        """Share of the outliers that an arm leaves."""
        return float(result.outliers.sum() / self.outliers.sum().clamp_min(1))

    def effects(self, neurons: Pairs, moved: Pairs = ()) -> list[Effect]:
        """What moving each neuron by itself does to the outliers; no more than is needed is run.

        Args:
            neurons: moved to a register, one at a time.
            moved: moved in all arms that are compared.
        """
        moved = list(moved)
        before = self._at_outliers(self._norms(moved))
        return [self._effect(self._norms([*moved, neuron]), before) for neuron in neurons]

    def _effect(self, norms: list[Tensor], before: Float[Tensor, " image"]) -> Effect:
        above = sum(int((part > self.detection.threshold.value).sum()) for part in norms)
        shrinkage = 1 - self._at_outliers(norms) / before
        return Effect(shrinkage, above / max(int(self.outliers.sum()), 1))

    def prominence(self, moved: Pairs) -> float:
        """Norm at the outliers' places over the median, mean over images, with neurons moved."""
        norms = self._norms(moved)
        medians = [part.median(dim=1, keepdim=True).values for part in norms]
        ratios = [part / median for part, median in zip(norms, medians, strict=True)]
        return float(self._at_outliers(ratios).mean())

    def _norms(self, neurons: Pairs) -> list[Float[Tensor, "batch candidate"]]:
        """Norms of the candidates with neurons and the base moved to a register."""
        moved = self._moved(neurons)
        arm = (TestTimeRegister(moved),) if len(moved) else ()
        last = max(self.detection.detect_layer, *(layer for layer, _ in moved.layers), 0)
        return [
            self._forward(batch.start.with_register, batch.start.image_size, *arm, stop=last + 1)[0]
            for batch in self.batches
        ]

    def _at_outliers(self, norms: list[Tensor]) -> Float[Tensor, " image"]:
        """Mean norm at the outliers' places, of the images that have some."""
        means = []
        for batch, part in zip(self.batches, norms, strict=True):
            count = batch.outliers.sum(dim=1)
            mean = (part * batch.outliers).sum(dim=1) / count
            means.append(mean[count > 0].cpu().double())
        return torch.cat(means)

    def _run(self, start: Start, intervention: Intervention) -> tuple[Tensor, Tensor]:
        """Output, and which candidates are outliers."""
        resid = start.with_register if intervention.n_added_tokens else start.plain
        norms, output = self._forward(resid, start.image_size, intervention)
        return output.flatten(1).float(), norms > self.detection.threshold.value

    def _forward(
        self,
        resid: Float[Tensor, "batch token d_model"],
        image_size: tuple[int, int],
        *arm: Intervention,
        stop: int | None = None,
    ) -> tuple[Float[Tensor, "batch candidate"], Tensor]:
        """Norms of the candidates at the detection layer, and what the forward returns."""
        kept: list[Tensor] = []
        site = f"blocks.{self.detection.detect_layer}.hook_resid_post"
        read = (site, lambda resid, hook: kept.append(token_norms(resid)))
        with torch.no_grad(), self.model.intervened(*arm), self.model.hooks(fwd_hooks=[read]):
            found = self.model(
                resid,
                start_at_layer=self.first_layer,
                stop_at_layer=stop,
                image_size=image_size,
            )
        self.tick(len(resid))
        shape = (len(resid), self.model.parts.n_channels, *image_size)
        layout = self.model.layout(shape).of_length(resid.shape[1])
        return kept[0][:, candidate_rows(layout, self.detection.candidates)], found
