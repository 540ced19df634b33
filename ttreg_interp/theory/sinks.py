r"""Does a head of a real model do a no-op, and by how much? Measures, streamed over images.

With $p_{qk}$ the pattern of a head, $v_k$ its values, $S$ the sink's keys, $x_q$ the residual stream:

$$c_q = \sum_{k\in S} p_{qk}\, v_k W_O, \qquad r_q = \sum_k p_{qk}\, v_k W_O, \qquad
  r'_q = \frac{r_q - c_q}{1 - \sum_{k\in S} p_{qk}} .$$

In the closed-form model (`theory.noop`) the sink has all attention, $c_q$ is one vector for all
queries, and what follows does not see it. Queries here are all tokens but the sink itself. All of it
is quadratic in d_head-sized vectors, so nothing of size d_model is held by query.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ttreg_interp.errors import DataError, UnsupportedModelError
from ttreg_interp.hooked.intervened import NamedHook
from ttreg_interp.interventions.frame import Frame
from ttreg_interp.interventions.masks import key_columns
from ttreg_interp.interventions.selectors import select
from ttreg_interp.theory.batches import Batches
from ttreg_interp.theory.gains import grams_of
from ttreg_interp.theory.moments import HeadSums, Moments
from ttreg_interp.theory.noop_table import LayerNoOp, NoOpTable

BIAS = "attention_bias"
"""Name of the key of an attention bias, which is no token."""

Change = Callable[[Tensor, Any], Tensor]


@torch.no_grad()
def noop_measures(
    model: Any,
    images: Any,
    sink: Any = "cls",
    removal: bool = True,
    batch_size: int = 8,
) -> NoOpTable:
    """Attention on the sink, its values, the constancy and effect of what it gives, for every head.

    Memory does not depend on the number of images.

    Args:
        model: a hooked model, under whatever `model.intervened(...)` it stands.
        images: what `find_register_neurons` takes; or token ids, for a language model.
        sink: what `interventions.select` takes: a part of the layout ('cls',
            'test_time_registers', 'trained_registers'), rows, or a selector such as
            Outliers(threshold, layer); or 'attention_bias', the key of an AttentionBias that runs.
        removal: also measure the output without each layer's attention, 3 forward passes a layer.
        batch_size: images of one forward pass.

    Raises:
        DataError: no images, or none with a sink.
        InterventionError: the model has no such rows.
        UnsupportedModelError: heads that are gated or normalised after the values are mixed.

    Source: value drain and sink share: arXiv 2410.13835; constancy of the sink's part:
        arXiv 2402.17762, section 4.2; the rest is ours.

    Example:
        >>> from ttreg_interp.hooked import HookedViT
        >>> from ttreg_interp.interventions import TestTimeRegister
        >>> from ttreg_interp.testbed import planted_vit, photograph_tensor
        >>> vit = planted_vit(image_size=96, depth=6)
        >>> model = HookedViT.wrap(vit.module)
        >>> with model.intervened(TestTimeRegister(vit.truth)):
        ...     found = noop_measures(model, photograph_tensor(96)[:4], "test_time_registers", False)
        >>> [round(row.attention.estimate) for row in found.heads if row.layer == 5]
        [1, 1, 1]
    """
    measured = _Measured(model, sink)
    for inputs in Batches.of(model, images, batch_size):
        chosen = measured.rows(inputs)
        present = chosen.any(dim=1)
        measured.n_without += int((~present).sum())
        if present.any():
            measured.add(inputs[present], chosen[present], removal)
    if not measured.n_images:
        raise DataError(
            f"None of {measured.n_without} images has a sink ({measured.describe()}). Lower the "
            "threshold, choose other rows, or give images."
        )
    return measured.table()


class _Measured:
    """Sums over the images seen so far."""

    def __init__(self, model: Any, sink: Any):
        self.model = model
        self.selector = None if sink == BIAS else select(sink)
        self.layers = list(range(model.cfg.n_layers))
        self.sums = [HeadSums(grams_of(model, layer)) for layer in self.layers]
        self.changes = [
            {name: Moments() for name in ("removed", "sink_only", "without_sink")}
            for _ in self.layers
        ]
        self.n_images = self.n_without = 0

    def describe(self) -> str:
        return "attention bias" if self.selector is None else self.selector.describe()

    def rows(self, inputs: Tensor) -> Bool[Tensor, "batch token"]:
        """The sink's rows; of an attention bias, which has none, all rows are given."""
        last = f"blocks.{self.layers[-1]}.hook_resid_post"
        n_tokens: list[int] = []
        watch: list[NamedHook] = [(last, lambda resid, hook: n_tokens.append(resid.shape[1]))]
        if self.selector is None:
            self.model.run_with_hooks(inputs, fwd_hooks=watch)
            return inputs.new_ones(len(inputs), n_tokens[0], dtype=torch.bool)
        bound = self.selector.bind(Frame.of(self.model, 0), last)
        self.model.run_with_hooks(inputs, fwd_hooks=[*bound.hooks, *watch])
        return bound.rows(n_tokens[0], inputs.device).expand(len(inputs), -1)

    def add(self, inputs: Tensor, chosen: Bool[Tensor, "batch token"], removal: bool) -> None:
        self.n_images += len(inputs)
        run = _LayerRun(self.sums, chosen, of_bias=self.selector is None)
        full = self.model.run_with_hooks(inputs, fwd_hooks=run.hooks(self.layers))
        if not removal:
            return
        for layer in self.layers:
            for name, hook in run.edits(layer).items():
                edited = self.model.run_with_hooks(inputs, fwd_hooks=[hook])
                self.changes[layer][name].add(_change(edited, full))

    def table(self) -> NoOpTable:
        rows = [
            LayerNoOp(layer, **{name: moments.intervals()[0] for name, moments in changes.items()})
            for layer, changes in enumerate(self.changes)
            if changes["removed"].n
        ]
        heads = [row for layer, sums in enumerate(self.sums) for row in sums.rows(layer)]
        return NoOpTable(
            model=str(self.model.cfg.model_name),
            sink=self.describe(),
            n_images=self.n_images,
            n_without=self.n_without,
            heads=tuple(heads),
            layers=tuple(rows),
        )


class _LayerRun:
    """Hooks that measure one batch, and edits of its attention."""

    def __init__(self, sums: list[HeadSums], chosen: Bool[Tensor, "batch token"], of_bias: bool):
        self.sums = sums
        self.chosen = chosen
        self.of_bias = of_bias
        self.norms = self.values = self.mixed = torch.empty(0)

    def hooks(self, layers: Iterable[int]) -> list[NamedHook]:
        found: list[NamedHook] = []
        for layer in layers:
            block, attn = f"blocks.{layer}.", f"blocks.{layer}.attn."
            found += [
                (f"{block}hook_resid_pre", self._keep_norms),
                (f"{attn}hook_v", self._keep_values),
                (f"{attn}hook_pattern", partial(self._measure, layer)),
                (f"{attn}hook_z", self._check_mixed),
            ]
        return found

    def edits(self, layer: int) -> dict[str, NamedHook]:
        """Attention removed, of the sink only, and of all but the sink; by name."""
        pattern = f"blocks.{layer}.attn.hook_pattern"
        return {
            "removed": (
                f"blocks.{layer}.hook_attn_out",
                lambda out, hook: torch.zeros_like(out),
            ),
            "sink_only": (pattern, lambda p, hook: p * self._keys(p.shape[-1])[:, None, None]),
            "without_sink": (pattern, lambda p, hook: p * ~self._keys(p.shape[-1])[:, None, None]),
        }

    def _keys(self, n_keys: int) -> Bool[Tensor, "batch key"]:
        if not self.of_bias:
            return key_columns(self.chosen, n_keys)
        if n_keys == self.chosen.shape[1]:
            raise DataError(
                f"sink={BIAS!r}, but all {n_keys} keys are tokens: no AttentionBias runs. Measure "
                "inside model.intervened(AttentionBias(...))."
            )
        keys = torch.zeros(len(self.chosen), n_keys, dtype=torch.bool, device=self.chosen.device)
        keys[:, 0] = True
        return keys

    def _keep_norms(self, resid: Tensor, hook: Any) -> None:
        self.norms = resid.norm(dim=-1)

    def _keep_values(self, v: Tensor, hook: Any) -> None:
        self.values = v.transpose(1, 2)

    def _measure(self, layer: int, pattern: Tensor, hook: Any) -> None:
        keys = self._keys(pattern.shape[-1])
        queries = torch.ones_like(self.chosen) if self.of_bias else ~self.chosen
        self.mixed = self.sums[layer].add(pattern, self.values, keys, queries, self.norms)

    def _check_mixed(self, z: Tensor, hook: Any) -> None:
        expected = self.mixed.transpose(1, 2)
        if (z - expected).abs().amax() > 1e-2 * expected.abs().amax():
            raise UnsupportedModelError(
                f"{hook.name} is not pattern x values: this attention is gated or normalised after "
                "mixing, so that its output is no sum of what single keys give."
            )


def _change(edited: Tensor, full: Tensor) -> Float[Tensor, "batch 1"]:
    edited, full = edited.flatten(1).double(), full.flatten(1).double()
    return ((edited - full).norm(dim=1) / full.norm(dim=1))[:, None]
