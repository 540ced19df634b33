"""Interventions on any activation: values of another run, and massive activations."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import InterventionError
from ttreg_interp.hooked.intervened import NamedHook
from ttreg_interp.interventions.base import Intervention
from ttreg_interp.interventions.frame import Frame
from ttreg_interp.interventions.selector import ALL_TOKENS, Bound, Tokens
from ttreg_interp.interventions.selectors import select
from ttreg_interp.interventions.value import Stored, TensorValue

_WITH_HEADS = ("hook_q", "hook_k", "hook_v", "hook_z", "hook_result")
_WITHOUT_TOKENS = (
    "hook_pooled",
    "hook_out",
    "hook_mask",
    "hook_attn_scores",
    "hook_pattern",
)


@dataclass(frozen=True, repr=False)
class PatchActivation(Intervention):
    """Writes given values into an activation: x[t, ..., d] = values, where chosen.

    The values are those of another run (clean into corrupted, or back), a mean, or a constant; all
    of the activation, or some tokens, heads and dimensions of it.

    Raises:
        InterventionError: a hook point that the model does not have; heads or tokens where it has no
            such axis; values that do not broadcast to it; a dimension out of range.

    Example:
        >>> PatchActivation("blocks.5.hook_resid_post", torch.zeros(192), tokens="cls")
        <PatchActivation: blocks.5.hook_resid_post = float32[192], on cls>
    """

    hook: str
    """Hook point, with `batch` as its first axis and `token` as its second: residuals, outputs of
    attention and MLP, neurons, q, k, v, z, results of heads, the embedding, pooled and output
    vectors. (Patterns: ReplacePattern.)"""
    values: Stored
    """In the shape of the activation, or one that broadcasts to it: axes are matched from the last,
    and 1 or a missing axis means that all share it."""
    tokens: Tokens = ALL_TOKENS
    """Which rows: a selector, a part's name, rows, positions or a mask."""
    heads: tuple[int, ...] | None = None
    """Which heads, where the activation has them; None: all."""
    dims: tuple[int, ...] | None = None
    """Which entries of the last axis; None: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "values", TensorValue.of(self.values))
        object.__setattr__(self, "tokens", select(self.tokens))
        if self.heads is not None and not self.hook.endswith(_WITH_HEADS):
            raise InterventionError(
                f"{self.hook} has no head axis; heads are told apart at {', '.join(_WITH_HEADS)}."
            )
        if self.hook.endswith(_WITHOUT_TOKENS) and self.tokens != ALL_TOKENS:
            raise InterventionError(
                f"{self.hook} has no token axis behind the batch. Leave out tokens=; for some queries of "
                "a pattern use ReplacePattern."
            )

    @classmethod
    def from_cache(cls, cache: Any, hook: str, **where: Any) -> "PatchActivation":
        """Values that another run left in its cache.

        Args:
            cache: of `run_with_cache`, a copy of the values is taken.
            hook: full name of a hook point, e.g. 'blocks.5.attn.hook_z'.
            **where: `tokens`, `heads`, `dims`.
        """
        return cls(hook, TensorValue.of(cache[hook].detach().clone()), **where)

    def describe(self) -> str:
        """What it does, in words."""
        where = [
            "" if self.tokens == ALL_TOKENS else f", on {self.tokens.describe()}",
            "" if self.heads is None else f", heads {', '.join(map(str, self.heads))}",
            "" if self.dims is None else f", dimensions {', '.join(map(str, self.dims))}",
        ]
        return f"{self.hook} = {self.values}{''.join(where)}"

    def _hooks(self, frame: Frame) -> list[NamedHook]:
        if self.hook not in frame.model.hook_dict:
            near = get_close_matches(self.hook, frame.model.hook_dict, n=3) or "model.hook_dict"
            raise InterventionError(
                f"{frame.name} has no hook point {self.hook!r}; near it: {near}. Names are full, with "
                "layers from 0."
            )
        bound = self.tokens.bind(frame, self.hook)
        heads = None if self.heads is None else frame.head_mask(self.heads)
        return [*bound.hooks, (self.hook, partial(self._write, bound, heads))]

    def _write(
        self, bound: Bound, heads: Tensor | None, activation: Tensor, hook: Any
    ) -> Float[Tensor, "..."]:
        values = self.values.like(activation)
        _check_broadcast(self.hook, values, activation)
        where = torch.ones(1, dtype=torch.bool, device=activation.device)
        if self.tokens != ALL_TOKENS:
            rows = bound.rows(activation.shape[1], activation.device)
            where = where & rows[(..., *[None] * (activation.ndim - 2))]
        if heads is not None:
            where = where & heads.to(activation.device)[:, None]
        if self.dims is not None:
            where = where & _dim_mask(self.hook, self.dims, activation)
        return torch.where(where, values, activation)


def _check_broadcast(hook: str, values: Tensor, activation: Tensor) -> None:
    padded = (1,) * (activation.ndim - values.ndim) + tuple(values.shape)
    fits = len(padded) == activation.ndim
    if not fits or any(n not in (1, m) for n, m in zip(padded, activation.shape, strict=True)):
        raise InterventionError(
            f"Values of shape {list(values.shape)} do not fit {hook} of shape "
            f"{list(activation.shape)}. Patch from a run with as many images and tokens (test-time "
            "registers count), or give values that all images and tokens share."
        )


def _dim_mask(hook: str, dims: Iterable[int], activation: Tensor) -> Tensor:
    width = activation.shape[-1]
    mask = torch.zeros(width, dtype=torch.bool)
    for dim in dims:
        if not 0 <= dim < width:
            raise InterventionError(
                f"Dimension {dim} is not in {hook}: its last axis has {width}, counted from 0."
            )
        mask[dim] = True
    return mask.to(activation.device)


@dataclass(frozen=True, repr=False)
class SetMassiveActivations(Intervention):
    """Sets entries of the residual stream after a block: x[t, d] = value.

    Zero destroys a model that relies on them; their mean over samples leaves it as it was, so that
    their constancy is what matters (arXiv 2402.17762, section 3.2 and Table 3).

    Raises:
        InterventionError: as many values as dimensions are needed; a layer or dimension out of range;
            tokens that are not known yet after that block.

    Example:
        >>> SetMassiveActivations(6, dims=(408, 579), values=(0.0, 0.0), tokens="patches")
        <SetMassiveActivations: after block 6, on patches: x[408] = 0, x[579] = 0>
    """

    layer: int
    """The block after which they are set."""
    dims: tuple[int, ...]
    """Dimensions of the residual stream."""
    values: tuple[float, ...]
    """One a dimension: 0, a measured mean (`mean_activations`), or any value."""
    tokens: Tokens = ALL_TOKENS
    """On which tokens, e.g. Outliers(threshold, layer)."""
    threshold: float = 0.0
    """Only entries of larger magnitude are set; 100 for 'massive' entries."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tokens", select(self.tokens))
        if len(self.dims) != len(self.values) or not self.dims:
            raise InterventionError(
                f"{len(self.values)} values for {len(self.dims)} dimensions: give one value a dimension."
            )

    def describe(self) -> str:
        """What it does, in words."""
        pairs = zip(self.dims, self.values, strict=True)
        entries = ", ".join(f"x[{dim}] = {value:g}" for dim, value in pairs)
        large = f" where |x| > {self.threshold:g}" if self.threshold else ""
        return f"after block {self.layer}, on {self.tokens.describe()}: {entries}{large}"

    def _hooks(self, frame: Frame) -> list[NamedHook]:
        (layer,) = frame.layers((self.layer,))
        name = f"blocks.{layer}.hook_resid_post"
        bound = self.tokens.bind(frame, name)
        return [*bound.hooks, (name, partial(self._set, bound))]

    def _set(self, bound: Bound, resid: Tensor, hook: Any) -> Float[Tensor, "batch token d_model"]:
        _dim_mask(f"blocks.{self.layer}.hook_resid_post", self.dims, resid)
        index = torch.tensor(self.dims, device=resid.device)
        old = resid[:, :, index]
        rows = bound.rows(resid.shape[1], resid.device)[:, :, None]
        large = old.detach().abs() > self.threshold if self.threshold else rows
        new = torch.where(rows & large, resid.new_tensor(self.values), old)
        return resid.index_copy(2, index, new)
