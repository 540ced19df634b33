"""A trial: held-out images, run under interventions and compared with the intact model."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ttreg_interp.discovery.capture import mlp_inputs, token_norms
from ttreg_interp.discovery.survey import Detection, candidate_rows
from ttreg_interp.interventions.base import Empty, Intervention
from ttreg_interp.interventions.neuron_set import NeuronSet
from ttreg_interp.interventions.registers import TestTimeRegister

Pairs = Iterable[tuple[int, int]]


@dataclass(frozen=True)
class ArmResult:
    """Held-out images under one intervention."""

    outliers: Float[Tensor, " image"]
    """Outliers of each image."""
    drift: Float[Tensor, " image"]
    """1 - cosine of the output to the intact model's."""


@dataclass(frozen=True)
class TrialBatch:
    """Some of the held-out images, before anything is tried."""

    pixels: Float[Tensor, "batch channel height width"]
    """The images."""
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
    base: NeuronSet
    """Neurons that are moved to a register in every arm but the intact one."""
    batches: tuple[TrialBatch, ...]
    """The images."""

    @classmethod
    def of(
        cls,
        model: Any,
        detection: Detection,
        batches: Iterable[Tensor],
        base: NeuronSet | None = None,
    ) -> "Trial":
        """Run the model once; with a base, once more with that moved."""
        empty = cls(model, detection, NeuronSet() if base is None else base, ())
        return replace(empty, batches=tuple(empty._before(pixels) for pixels in batches))

    def _before(self, pixels: Tensor) -> TrialBatch:
        output, outliers = self._run(pixels)
        if len(self.base):
            with self.model.intervened(TestTimeRegister(self.base)):
                _, outliers = self._run(pixels)
        return TrialBatch(pixels, output, outliers)

    @property
    def outliers(self) -> Float[Tensor, " image"]:
        """Outliers of each image, with the base moved."""
        counts = [batch.outliers.sum(dim=1).cpu().double() for batch in self.batches]
        return torch.cat(counts) if counts else torch.zeros(0, dtype=torch.float64)

    @property
    def n_images(self) -> int:
        """Held-out images."""
        return sum(len(batch.pixels) for batch in self.batches)

    def run(self, intervention: Intervention) -> ArmResult:
        """The same images under an intervention."""
        outliers, drift = [], []
        for batch in self.batches:
            with self.model.intervened(intervention):
                output, found = self._run(batch.pixels)
            outliers.append(found.sum(dim=1).cpu().double())
            drift.append(1 - torch.cosine_similarity(output, batch.output, dim=-1).cpu())
        return ArmResult(torch.cat(outliers), torch.cat(drift))

    def shifted(self, neurons: Pairs) -> ArmResult:
        """The same images with these neurons and the base moved to a test-time register."""
        return self.run(self._register(neurons))

    def left(self, result: ArmResult) -> float:
        """Share of the outliers that an arm leaves."""
        return float(result.outliers.sum() / self.outliers.sum().clamp_min(1))

    def activation(self, pairs: list[tuple[int, int]], moved: Pairs = ()) -> Float[Tensor, " pair"]:
        """Mean activation of neurons at the outliers' places, while others are moved away.

        Args:
            pairs: the neurons to read.
            moved: the neurons that a test-time register takes away, besides the base.
        """
        intervention = self._register(moved)
        total = torch.zeros(len(pairs), dtype=torch.float64)
        for batch in self.batches:
            with self.model.intervened(intervention):
                total += self._activation(batch, pairs)
        return total / self.outliers.sum().clamp_min(1)

    def _activation(self, batch: TrialBatch, pairs: list[tuple[int, int]]) -> Tensor:
        layers = [layer for layer, _ in pairs]
        with torch.no_grad(), mlp_inputs(self.model, range(min(layers), max(layers) + 1)) as inputs:
            self.model(batch.pixels, stop_at_layer=max(layers) + 1)
        sums = torch.zeros(len(pairs), dtype=torch.float64)
        for layer in set(layers):
            at = [place for place, pair in enumerate(pairs) if pair[0] == layer]
            rows = self._candidates(batch.pixels, inputs[layer])[batch.outliers]
            with torch.no_grad():
                post = self.model.blocks[layer].mlp.neurons(rows[None])[0].float().sum(dim=0)
            sums[at] = post[[pairs[place][1] for place in at]].cpu().double()
        return sums

    def _candidates(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Rows of the tokens that may be outliers, the same tokens with and without a register."""
        layout = self.model.layout(pixels.shape).of_length(tokens.shape[1])
        return tokens[:, candidate_rows(layout, self.detection.candidates)]

    def _run(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Output, and which candidates are outliers."""
        kept: list[Tensor] = []
        site = f"blocks.{self.detection.detect_layer}.hook_resid_post"
        read = (site, lambda resid, hook: kept.append(token_norms(resid)))
        with torch.no_grad(), self.model.hooks(fwd_hooks=[read]):
            output = self.model(pixels)
        norms = self._candidates(pixels, kept[0])
        return output.flatten(1).float(), norms > self.detection.threshold.value

    def _register(self, neurons: Pairs) -> Intervention:
        chosen = NeuronSet.of([*self.base, *neurons])
        return TestTimeRegister(chosen) if len(chosen) else Empty()
