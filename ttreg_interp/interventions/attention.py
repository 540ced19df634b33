"""Interventions on attention: keys added, removed or weighed, and patterns written."""

from dataclasses import dataclass
from functools import partial
from math import log
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import InterventionError
from ttreg_interp.hooked.intervened import NamedHook
from ttreg_interp.interventions.base import Intervention
from ttreg_interp.interventions.frame import Frame
from ttreg_interp.interventions.masks import AttentionMask, hide, key_columns
from ttreg_interp.interventions.selector import Bound, Tokens
from ttreg_interp.interventions.selectors import select
from ttreg_interp.interventions.value import Stored, TensorValue

Heads = Float[Tensor, "batch token head d_head"]
Pattern = Float[Tensor, "batch head query key"]


def in_layers(layers: tuple[int, ...] | None) -> str:
    """', in layers ...', or nothing where all are meant."""
    return "" if layers is None else f", in layers {', '.join(map(str, layers))}"


class _FrontKey:
    """One key and value put in front of those of a layer, and its column among the scores."""

    def __init__(self, key: Tensor, value: Tensor, logit: float):
        self.key, self.value, self.logit = key, value, logit  # [head, d_head]
        self.n_keys_behind = 0

    def hooks(self, layer: int) -> list[NamedHook]:
        """Its hooks on a layer."""
        attn = f"blocks.{layer}.attn."
        hooks: list[NamedHook] = [
            (f"{attn}hook_k", self._put_key),
            (f"{attn}hook_v", self._put_value),
        ]
        return [*hooks, (f"{attn}hook_mask", self._weigh)] if self.logit else hooks

    def _put_key(self, k: Tensor, hook: Any) -> Heads:
        self.n_keys_behind = k.shape[1]
        return _in_front(self.key, k)

    def _put_value(self, v: Tensor, hook: Any) -> Heads:
        return _in_front(self.value, v)

    def _weigh(self, mask: Tensor, hook: Any) -> AttentionMask:
        column = mask.shape[-1] - self.n_keys_behind - 1
        logits = mask.new_zeros(mask.shape[-1])
        logits[column] = self.logit
        return mask + logits


def _in_front(row: Tensor, rows: Tensor) -> Heads:
    row = row.to(rows).expand(len(rows), 1, *rows.shape[2:])
    return torch.cat((row, rows), dim=1)


@dataclass(frozen=True, repr=False)
class AttentionBias(Intervention):
    """One key and value more in every head, without a token: softmax(q [k', K]^T) [v', V].

    The column of k' comes first in scores and patterns; k' is not rotated. With the mean key and
    value of a test-time register as k' and v' and all register neurons zeroed, no token carries an
    outlier any more. k' = 0, v' = 0 is softmax-off-by-one.

    Raises:
        InterventionError: k' and v' of different shapes, or not those of the model's layers and heads;
            copies <= 0.

    Source: arXiv 2506.08010, A.2 (training-free); arXiv 2402.17762, equation 3 (learned).

    Example:
        >>> AttentionBias(torch.zeros(12, 3, 64), torch.zeros(12, 3, 64), copies=4)
        <AttentionBias: key and value of 12 layers with 3 heads added, counting as 4 keys>
    """

    k: Stored
    """[layer, head, d_head]: k', as `hook_k` holds keys."""
    v: Stored
    """[layer, head, d_head]: v'."""
    layers: tuple[int, ...] | None = None
    """Which layers the rows of k and v belong to; None: all of the model in order."""
    copies: float = 1.0
    """As how many keys it counts: log(copies) is added to its logit (RegCache's tau)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "k", TensorValue.of(self.k))
        object.__setattr__(self, "v", TensorValue.of(self.v))
        k, v = self.k.tensor, self.v.tensor
        rows = len(k) if self.layers is None and k.ndim else len(self.layers or ())
        if k.shape != v.shape or k.ndim != 3 or len(k) != rows:
            raise InterventionError(
                f"k' has shape {list(k.shape)}, v' {list(v.shape)}: both are [layer, head, d_head]"
                f"{'' if self.layers is None else f', with {rows} layers as in layers={self.layers}'}."
            )
        if self.copies <= 0:
            raise InterventionError(f"copies={self.copies}: a bias counts as more than 0 keys.")

    def describe(self) -> str:
        """What it does, in words."""
        layers, heads, _ = self.k.tensor.shape
        counting = f", counting as {self.copies:g} keys" if self.copies != 1 else ""
        return (
            f"key and value of {layers} layers with {heads} heads added{in_layers(self.layers)}"
            f"{counting}"
        )

    def _hooks(self, frame: Frame) -> list[NamedHook]:
        layers = frame.layers(self.layers)
        cfg = frame.model.cfg
        expected = (len(layers), int(cfg.n_heads), int(cfg.d_head))
        found = tuple(self.k.tensor.shape)
        if found != expected:
            raise InterventionError(
                f"k' and v' have shape {list(found)}, [layer, head, d_head]; {frame.name} takes "
                f"{list(expected)}. Are they of another model? For some layers only, name them: "
                "AttentionBias(k, v, layers=(...))."
            )
        return [
            hook
            for layer, k, v in zip(layers, self.k.tensor, self.v.tensor, strict=True)
            for hook in _FrontKey(k, v, log(self.copies)).hooks(layer)
        ]


@dataclass(frozen=True, repr=False)
class SoftmaxOffByOne(Intervention):
    """Attention that may sum to less than one: p_j = exp(s_j) / (copies + sum_i exp(s_i)).

    Raises:
        InterventionError: copies <= 0; a layer that the model does not have.

    Source: arXiv 2309.17453, section 3.3 ('zero sink'), where it is trained with.

    Example:
        >>> SoftmaxOffByOne()
        <SoftmaxOffByOne: 1 added to the denominator of softmax>
    """

    copies: float = 1.0
    """What is added to the denominator."""
    layers: tuple[int, ...] | None = None
    """Where; None: in all layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.copies <= 0:
            raise InterventionError(
                f"copies={self.copies}: more than 0 is added to the denominator."
            )

    def describe(self) -> str:
        """What it does, in words."""
        return f"{self.copies:g} added to the denominator of softmax{in_layers(self.layers)}"

    def _hooks(self, frame: Frame) -> list[NamedHook]:
        zeros = torch.zeros(int(frame.model.cfg.n_heads), int(frame.model.cfg.d_head))
        return [
            hook
            for layer in frame.layers(self.layers)
            for hook in _FrontKey(zeros, zeros, log(self.copies)).hooks(layer)
        ]


@dataclass(frozen=True, repr=False)
class KnockoutAttention(Intervention):
    """Cuts attention from some queries to some keys: p[q, k] = 0.

    With renormalisation the scores are masked before softmax, so that the other keys share the mass,
    and attention stays fused; without, the pattern is zeroed and the row sums to less than one, which
    splits attention's output into additive parts (arXiv 2505.05892, patch-only and register-only
    [CLS]).

    Raises:
        InterventionError: a layer, head or token that the model does not have; with renormalisation, a
            query that is left without any key.

    Example:
        >>> KnockoutAttention("cls", "patches", layers=(11,), renormalise=False)
        <KnockoutAttention: cls does not attend to patches (not renormalised), in layers 11>
    """

    query: Tokens
    """Which tokens no longer attend: a selector, a part's name, rows, positions or a mask."""
    key: Tokens
    """... to which."""
    layers: tuple[int, ...] | None = None
    """Where; None: in all layers."""
    heads: tuple[int, ...] | None = None
    """In which heads; None: in all."""
    renormalise: bool = True
    """Whether the other keys share what is cut."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "query", select(self.query))
        object.__setattr__(self, "key", select(self.key))

    def describe(self) -> str:
        """What it does, in words."""
        how = "" if self.renormalise else " (not renormalised)"
        heads = "" if self.heads is None else f", in heads {', '.join(map(str, self.heads))}"
        return (
            f"{self.query.describe()} does not attend to {self.key.describe()}{how}"
            f"{in_layers(self.layers)}{heads}"
        )

    def _hooks(self, frame: Frame) -> list[NamedHook]:
        layers = frame.layers(self.layers)
        heads = None if self.heads is None else frame.head_mask(self.heads)
        point = "hook_mask" if self.renormalise else "hook_pattern"
        names = [f"blocks.{layer}.attn.{point}" for layer in layers]
        query, key = (one.bind(frame, names[0]) for one in (self.query, self.key))
        cut = partial(self._mask if self.renormalise else self._zero, query, key, heads)
        return [*query.hooks, *key.hooks, *((name, cut) for name in names)]

    def _mask(
        self, query: Bound, key: Bound, heads: Tensor | None, mask: Tensor, hook: Any
    ) -> AttentionMask:
        return hide(mask, _cut(query, key, heads, mask))

    def _zero(
        self, query: Bound, key: Bound, heads: Tensor | None, pattern: Tensor, hook: Any
    ) -> Pattern:
        return pattern.masked_fill(_cut(query, key, heads, pattern), 0)


def _cut(query: Bound, key: Bound, heads: Tensor | None, scores: Tensor) -> Tensor:
    """Which [images, heads, query, key] are cut."""
    n_queries, n_keys = scores.shape[-2:]
    queries = query.rows(n_queries, scores.device)[:, None, :, None]
    keys = key_columns(key.rows(n_queries, scores.device), n_keys)[:, None, None, :]
    cut = queries & keys
    return cut if heads is None else cut & heads.to(scores.device)[:, None, None]
