"""Interventions on what attention has computed: its pattern, and the output of its heads."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from ttreg_interp.errors import InterventionError
from ttreg_interp.hooked.intervened import NamedHook
from ttreg_interp.interventions.attention import Heads, Pattern, in_layers
from ttreg_interp.interventions.base import Intervention
from ttreg_interp.interventions.frame import Frame
from ttreg_interp.interventions.neuron_set import grouped
from ttreg_interp.interventions.selector import ALL_TOKENS, Bound, Tokens
from ttreg_interp.interventions.selectors import select
from ttreg_interp.interventions.value import Stored, TensorValue, check_choice


@dataclass(frozen=True, repr=False)
class ReplacePattern(Intervention):
    """Writes an attention pattern in place of the layer's own: p[q, k] = given.

    Raises:
        InterventionError: a pattern without four axes, or one that does not fit that of the run (added
            tokens and an attention bias lengthen it); a layer or head out of range.

    Example:
        >>> ReplacePattern(11, torch.full((1, 1, 197, 197), 1 / 197))
        <ReplacePattern: pattern of layer 11 replaced by float32[1, 1, 197, 197]>
    """

    layer: int
    """Which."""
    pattern: Stored
    """[image | 1, head | 1, query | 1, key]; rows that do not sum to one are taken as they are."""
    heads: tuple[int, ...] | None = None
    """In which heads; None: in all."""
    query: Tokens = ALL_TOKENS
    """For which queries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "pattern", TensorValue.of(self.pattern))
        object.__setattr__(self, "query", select(self.query))
        if self.pattern.tensor.ndim != 4:
            raise InterventionError(
                f"A pattern is [image, head, query, key], with 1 where all share it; found "
                f"{self.pattern}. Add axes: pattern[None, None]."
            )

    def describe(self) -> str:
        """What it does, in words."""
        heads = "" if self.heads is None else f" in heads {', '.join(map(str, self.heads))}"
        query = "" if self.query == ALL_TOKENS else f" for queries of {self.query.describe()}"
        return f"pattern of layer {self.layer}{heads}{query} replaced by {self.pattern}"

    def _hooks(self, frame: Frame) -> list[NamedHook]:
        (layer,) = frame.layers((self.layer,))
        name = f"blocks.{layer}.attn.hook_pattern"
        query = self.query.bind(frame, name)
        heads = frame.head_mask(
            range(frame.model.cfg.n_heads) if self.heads is None else self.heads
        )
        return [*query.hooks, (name, partial(self._write, query, heads))]

    def _write(self, query: Bound, heads: Tensor, pattern: Tensor, hook: Any) -> Pattern:
        given = self.pattern.like(pattern)
        if any(n not in (1, m) for n, m in zip(given.shape, pattern.shape, strict=True)):
            raise InterventionError(
                f"The given pattern is {self.pattern}, that of layer {self.layer} has shape "
                f"{list(pattern.shape)}, [image, head, query, key]. Each axis must agree or be 1; test-time "
                "registers and an attention bias lengthen the last two."
            )
        queries = query.rows(pattern.shape[2], pattern.device)[:, None, :, None]
        return torch.where(queries & heads.to(pattern.device)[:, None, None], given, pattern)


@dataclass(frozen=True, repr=False)
class ClippedSoftmax(Intervention):
    """Stretched and clipped attention: p' = clip((zeta - gamma) p + gamma, 0, 1).

    With gamma < 0 finite scores give exact zeros; rows may sum to less than one. gamma = 0, zeta = 1
    is softmax. Clipped entries pass no gradient.

    Raises:
        InterventionError: gamma > 0, zeta < 1, or both gamma and alpha; a layer out of range.

    Source: arXiv 2306.12929, equation 4.

    Example:
        >>> ClippedSoftmax(gamma=-0.025)
        <ClippedSoftmax: attention stretched to [-0.025, 1] and clipped>
    """

    gamma: float = 0.0
    """Lower end of the stretched range, <= 0."""
    zeta: float = 1.0
    """Upper end, >= 1."""
    alpha: float | None = None
    """Takes the place of gamma: gamma = -alpha / number of keys."""
    layers: tuple[int, ...] | None = None
    """Where; None: in all layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given_both = self.alpha is not None and self.gamma != 0
        if self.gamma > 0 or self.zeta < 1 or given_both or (self.alpha or 0) < 0:
            raise InterventionError(
                f"Found gamma={self.gamma}, zeta={self.zeta}, alpha={self.alpha}: gamma must be <= 0, "
                "zeta >= 1, alpha >= 0, and only one of gamma and alpha given."
            )

    def describe(self) -> str:
        """What it does, in words."""
        low = f"{self.gamma:g}" if self.alpha is None else f"-{self.alpha:g} / keys"
        return f"attention stretched to [{low}, {self.zeta:g}] and clipped{in_layers(self.layers)}"

    def _hooks(self, frame: Frame) -> list[NamedHook]:
        return [
            (f"blocks.{layer}.attn.hook_pattern", self._clip) for layer in frame.layers(self.layers)
        ]

    def _clip(self, pattern: Tensor, hook: Any) -> Pattern:
        gamma = self.gamma if self.alpha is None else -self.alpha / pattern.shape[-1]
        return ((self.zeta - gamma) * pattern + gamma).clamp(0, 1)


@dataclass(frozen=True, repr=False)
class GateHeads(Intervention):
    """A gate on the output of every head: z[t, h] * scale * sigmoid(W[h] . ln1(x[t]) + b[h]).

    W = 0 gives a constant gate. x is the residual stream before the block as interventions composed
    before this one leave it: in `patch + gates` the gates read what `patch` wrote, in `gates + patch`
    what stood there before. On a HookedViT or HookedLM.

    Raises:
        InterventionError: weights or biases of other layers, heads or widths than the model's.

    Source: arXiv 2306.12929, section 4.2 (all heads by one linear map of the layer's input).

    Example:
        >>> GateHeads(torch.zeros(12, 3, 192), torch.zeros(12, 3), scale=2)
        <GateHeads: heads of 12 layers gated, times 2>
    """

    weight: Stored
    """[layer, head, d_model]: W."""
    bias: Stored
    """[layer, head]: b."""
    layers: tuple[int, ...] | None = None
    """Which layers the rows of W and b belong to; None: all of the model in order."""
    scale: float = 1.0
    """Factor on the gate; 2 makes sigmoid(0) no gate at all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "weight", TensorValue.of(self.weight))
        object.__setattr__(self, "bias", TensorValue.of(self.bias))

    def describe(self) -> str:
        """What it does, in words."""
        times = "" if self.scale == 1 else f", times {self.scale:g}"
        return f"heads of {len(self.weight.tensor)} layers gated{in_layers(self.layers)}{times}"

    def _hooks(self, frame: Frame) -> list[NamedHook]:
        layers = frame.layers(self.layers)
        cfg = frame.model.cfg
        expected = [len(layers), int(cfg.n_heads), int(cfg.d_model)]
        found = [list(value.tensor.shape) for value in (self.weight, self.bias)]
        if found != [expected, expected[:2]]:
            raise InterventionError(
                f"A gate's weight and bias have shapes {found[0]} and {found[1]}; {frame.name} takes "
                f"{expected} and {expected[:2]}, [layer, head, d_model] and [layer, head]. For some layers "
                "only, name them: GateHeads(weight, bias, layers=(...))."
            )
        return [hook for i, layer in enumerate(layers) for hook in self._layer(frame, i, layer)]

    def _layer(self, frame: Frame, index: int, layer: int) -> list[NamedHook]:
        norm = frame.model.blocks[layer].ln1.norm
        gates: list[Tensor] = []

        def open_gates(resid: Tensor, hook: Any) -> None:
            weight, bias = (value.like(resid)[index] for value in (self.weight, self.bias))
            gates[:] = [self.scale * linear(norm(resid), weight, bias).sigmoid()]

        def gate(z: Tensor, hook: Any) -> Heads:
            return z * gates.pop()[..., None].to(z.dtype)

        return [
            (f"blocks.{layer}.hook_resid_pre", open_gates),
            (f"blocks.{layer}.attn.hook_z", gate),
        ]


@dataclass(frozen=True, repr=False)
class AblateHeads(Intervention):
    """Removes the output of heads: z[t, h] = 0, or its mean over the image's tokens.

    Raises:
        InterventionError: no heads; a layer or head that the model does not have.

    Example:
        >>> AblateHeads({11: [0, 3]})
        <AblateHeads: zero in heads; layer 11: 0, 3>
    """

    heads: tuple[tuple[int, tuple[int, ...]], ...] | Any
    """Heads by layer: a mapping {layer: [head, ...]}, or pairs (layer, head)."""
    to: Literal["zero", "mean"] = "zero"
    """What takes their place. (A stored mean: PatchActivation on `attn.hook_z`.)"""
    tokens: Tokens = field(default=ALL_TOKENS, kw_only=True)
    """On which tokens."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", _heads_by_layer(self.heads))
        super().__post_init__()
        object.__setattr__(self, "tokens", select(self.tokens))
        check_choice("to", self.to, Literal["zero", "mean"])

    @property
    def looks_ahead(self) -> bool:
        """See Intervention."""
        return self.to == "mean"

    def describe(self) -> str:
        """What it does, in words."""
        listed = "; ".join(f"layer {layer}: {', '.join(map(str, hs))}" for layer, hs in self.heads)
        where = "" if self.tokens == ALL_TOKENS else f", on {self.tokens.describe()}"
        what = "zero" if self.to == "zero" else "the image's own mean"
        return f"{what} in heads; {listed}{where}"

    def _hooks(self, frame: Frame) -> list[NamedHook]:
        layers = frame.layers(layer for layer, _ in self.heads)
        names = [f"blocks.{layer}.attn.hook_z" for layer in layers]
        bound = self.tokens.bind(frame, names[0])
        edits = [partial(self._remove, frame.head_mask(heads), bound) for _, heads in self.heads]
        return [*bound.hooks, *zip(names, edits, strict=True)]

    def _remove(self, heads: Tensor, bound: Bound, z: Tensor, hook: Any) -> Heads:
        instead = torch.zeros_like(z) if self.to == "zero" else z.mean(dim=1, keepdim=True)
        tokens = bound.rows(z.shape[1], z.device)[:, :, None, None]
        return torch.where(tokens & heads.to(z.device)[:, None], instead, z)


def _heads_by_layer(heads: Any) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """From a mapping, pairs, or what this function returned before (and JSON kept)."""
    try:
        stored = isinstance(heads, tuple) and all(isinstance(pair[1], tuple) for pair in heads)
        by_layer = grouped(dict(heads) if stored else heads)
    except (TypeError, ValueError):
        by_layer = ()
    if not by_layer:
        raise InterventionError(
            f"Heads are a mapping {{layer: [head, ...]}} or pairs (layer, head); found {heads!r}."
        )
    return by_layer
