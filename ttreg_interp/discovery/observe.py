"""One forward pass up to the detection layer: which tokens are outliers, and what made them."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ttreg_interp.discovery.capture import mlp_inputs, residual_norms, token_norms
from ttreg_interp.discovery.stream import Batch
from ttreg_interp.discovery.survey import Detection, candidate_rows
from ttreg_interp.hooked.text_layout import Layout

N_ORDINARY = 4
"""Ordinary tokens drawn per image, to compare outliers with."""


@dataclass(frozen=True)
class Observation:
    """What one batch shows up to the detection layer."""

    outliers: Bool[Tensor, "batch token"]
    """Candidate tokens above the threshold."""
    cls_above: Bool[Tensor, " batch"]
    """Whether a [CLS] row exceeds the threshold."""
    resid: Float[Tensor, "batch token d_model"]
    """The residual stream at the detection layer."""
    inputs: dict[int, Float[Tensor, "batch token d_model"]]
    """What the MLP of each searched layer reads."""
    quiet: dict[int, Bool[Tensor, "batch neuron"]]
    """Neurons that pass the sparsity filter, by layer; empty without that filter."""
    layout: Layout
    """Of the token axis."""


@dataclass(frozen=True)
class Observer:
    """Runs batches and reads what discovery needs, at about the cost of the forward pass."""

    model: Any
    """A HookedViT, under interventions or not."""
    detection: Detection
    """How outliers are told."""
    layers: range
    """Layers whose neurons are looked at; empty to count outliers only."""
    sparsity: tuple[float, float] | None = None
    """The reference's filter, which reads all neurons on all tokens."""

    def __call__(self, batch: Batch) -> Observation:
        """Run one batch.

        Raises:
            ContractError: NaN or inf; names the layer.
        """
        kept: dict[str, Tensor] = {}
        quiet: dict[int, Tensor] = {}
        last = self.detection.detect_layer
        hooks = [(f"blocks.{last}.hook_resid_post", partial(_keep, kept))]
        if self.sparsity is not None:
            hooks += [
                (f"blocks.{layer}.mlp.hook_post", _quiet_reader(quiet, layer, *self.sparsity))
                for layer in self.layers
            ]
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            inputs = stack.enter_context(mlp_inputs(self.model, self.layers))
            stack.enter_context(self.model.hooks(fwd_hooks=hooks))
            self.model(batch.pixels, stop_at_layer=max(last + 1, self.layers.stop))
        return self._observed(batch, kept, inputs, quiet)

    def _observed(
        self, batch: Batch, kept: dict[str, Tensor], inputs: dict[int, Tensor], quiet: dict
    ) -> Observation:
        norms = token_norms(kept["resid"])
        if not torch.isfinite(norms).all():
            residual_norms(self.model, batch.pixels)  # names the layer
        layout = self.model.layout(batch.pixels.shape).of_length(norms.shape[1])
        above = norms > self.detection.threshold.value
        candidate = torch.zeros_like(above)
        candidate[:, candidate_rows(layout, self.detection.candidates)] = True
        return Observation(
            outliers=above & candidate,
            cls_above=above[:, layout.cls].any(dim=1),
            resid=kept["resid"],
            inputs=inputs,
            quiet=quiet,
            layout=layout,
        )


def _keep(kept: dict[str, Tensor], resid: Tensor, hook: Any) -> None:
    kept["resid"] = resid.detach()


def _quiet_reader(
    quiet: dict[int, Tensor], layer: int, activation: float, share: float
) -> Callable[..., None]:
    def read(post: Tensor, hook: Any) -> None:
        quiet[layer] = (post < activation).float().mean(dim=1) >= share

    return read


def draw_ordinary(
    outliers: Bool[Tensor, "batch token"],
    layout: Layout,
    index: Int[Tensor, " batch"],
    seed: int,
) -> Bool[Tensor, "batch token"]:
    """A few patches that are no outliers, drawn for each image from its number and the seed."""
    ordinary = torch.zeros_like(outliers)
    free = ~outliers[:, layout.patches]
    for row, number in enumerate(index.tolist()):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        order = torch.randperm(layout.n_patches, generator=generator).to(free.device)
        drawn = order[free[row, order]][:N_ORDINARY]
        ordinary[row, layout.patches.start + drawn] = True
    return ordinary
