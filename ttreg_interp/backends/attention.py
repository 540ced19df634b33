"""Attention as a call in somebody else's forward: its arguments read, its heads handed back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformer_lens.hook_points import HookPoint

from ttreg_interp.backends.sites import Call
from ttreg_interp.hooked.blocks import capped
from ttreg_interp.hooked.parts import AttentionParts

Heads = Float[Tensor, "batch token head d_head"]
Points = Mapping[str, HookPoint]
"""Hook points by the names in ATTENTION_POINTS."""


@dataclass(frozen=True)
class AttentionCall:
    """What attention is called with, whatever the convention."""

    q: Heads
    """Queries."""
    k: Float[Tensor, "batch _ _ d_head"]
    """Keys."""
    v: Float[Tensor, "batch _ _ d_head"]
    """Values."""
    mask: Tensor | None
    """Added to the scores, [batch | 1, head | 1, query, key]; None: nothing."""
    scale: float
    """Factor on query . key."""
    causal: bool = False
    """Whether a token sees itself and what stands before it only."""
    softcap: float | None = None
    """See AttentionParts."""


@dataclass(frozen=True)
class Convention:
    """How attention is called, and what it returns."""

    names: tuple[str, ...]
    """Of the positional arguments."""
    read: Callable[[dict[str, Any], AttentionParts], AttentionCall]
    """The call, from its arguments by name."""
    returned: Callable[[Heads, AttentionParts], Any]
    """Heads as the call returns them."""

    def call(
        self, inputs: tuple[tuple[Any, ...], dict[str, Any]], attn: AttentionParts
    ) -> AttentionCall:
        """The call, as nnsight shows its arguments."""
        args, named = inputs
        given = self.read({**dict(zip(self.names, args, strict=False)), **named}, attn)
        k, v = spread(given.k, attn), spread(given.v, attn)
        return replace(given, k=k, v=v, causal=attn.causal, softcap=attn.softcap)


def spread(grouped: Float[Tensor, "batch _ _ d_head"], attn: AttentionParts) -> Heads:
    """Keys or values that groups of heads share, repeated for each of them."""
    return grouped.repeat_interleave(attn.n_heads // grouped.shape[2], dim=2)


def _read(mask: str, scale: str) -> Callable[[dict[str, Any], AttentionParts], AttentionCall]:
    def read(given: dict[str, Any], attn: AttentionParts) -> AttentionCall:
        q, k, v = (given[name].transpose(1, 2) for name in ("query", "key", "value"))
        factor = given.get(scale)
        factor = q.shape[-1] ** -0.5 if factor is None else factor
        return AttentionCall(q, k, v, _additive(given.get(mask), q), factor)

    return read


def _read_torch(given: dict[str, Any], attn: AttentionParts) -> AttentionCall:
    q, k, v = attn.qkv(given["query"].transpose(0, 1))
    return AttentionCall(q, k, v, _additive(given.get("attn_mask"), q), attn.scale)


def _project(z: Heads, attn: AttentionParts) -> tuple[Tensor, None]:
    return attn.out(z.flatten(2)).transpose(0, 1), None


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask as what is added to scores, -inf where nothing is seen."""
    if mask is None:
        return None
    if mask.is_floating_point():
        return mask.masked_fill(mask <= torch.finfo(mask.dtype).min, float("-inf"))
    return like.new_zeros(mask.shape).masked_fill(~mask, float("-inf"))


CONVENTIONS: dict[Call, Convention] = {
    "transformers": Convention(
        ("module", "query", "key", "value", "attention_mask"),
        _read("attention_mask", "scaling"),
        lambda z, attn: (z, None),
    ),
    "sdpa": Convention(
        ("query", "key", "value", "attn_mask"),
        _read("attn_mask", "scale"),
        lambda z, attn: z.transpose(1, 2),
    ),
    "torch": Convention(("query", "key", "value"), _read_torch, _project),
}
"""`torch` is multi_head_attention_forward, which projects in and out itself, tokens before batch."""


def attend(given: AttentionCall, points: Points) -> Heads:
    """softmax(q k^T scale + mask) v through hook points, as HookedAttention runs it."""
    q, k, v = (
        points[name](x).transpose(1, 2)
        for name, x in (("hook_q", given.q), ("hook_k", given.k), ("hook_v", given.v))
    )
    mask = _mask(given, q.shape[2], k.shape[2])
    if points["hook_mask"].has_hooks():
        mask = q.new_zeros(1, 1, q.shape[2], k.shape[2]) if mask is None else mask
        mask = points["hook_mask"](mask)
    hooked = points["hook_attn_scores"].has_hooks() or points["hook_pattern"].has_hooks()
    if not hooked and given.softcap is None:
        if mask is not None:  # the fused kernels want all rows spelled out
            mask = mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        z = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=given.scale)
    else:
        scores = capped(q @ k.transpose(-2, -1) * given.scale, given.softcap)
        scores = points["hook_attn_scores"](scores if mask is None else scores + mask)
        z = points["hook_pattern"](scores.softmax(dim=-1)) @ v
    return points["hook_z"](z.transpose(1, 2)) if "hook_z" in points else z.transpose(1, 2)


def _mask(given: AttentionCall, n_queries: int, n_keys: int) -> Tensor | None:
    """The call's own mask; rows and keys that hooks put in front are seen as causality has it."""
    mask = given.mask
    if mask is not None:
        mask = pad(mask, (n_keys - mask.shape[-1], 0, n_queries - mask.shape[-2], 0))
    if not given.causal:
        return mask
    later = torch.ones(n_queries, n_keys, dtype=torch.bool, device=given.q.device)
    later = later.triu(1 + n_keys - n_queries)[None, None]
    causal = given.q.new_zeros(1, 1, n_queries, n_keys).masked_fill(later, float("-inf"))
    return causal if mask is None else causal + mask


def reweigh(
    pattern: Float[Tensor, "batch head query key"], points: Points
) -> Float[Tensor, "batch head query key"]:
    """A pattern that the model has made, through `hook_mask` and `hook_pattern`.

    softmax(s + m) = p exp(m) / sum over keys of p exp(m),   p = softmax(s)
    """
    if points["hook_mask"].has_hooks():
        mask = points["hook_mask"](pattern.new_zeros(1, 1, *pattern.shape[2:]))
        weighed = pattern * mask.exp()
        pattern = weighed / weighed.sum(dim=-1, keepdim=True)
    return points["hook_pattern"](pattern)
