"""Attention rows of chosen queries, without the full pattern: O(tokens) instead of O(tokens^2)."""

from collections.abc import Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ttreg_interp.hooked.intervened import NamedHook


class AttentionRows:
    """Hooks that collect softmax(q k^T) for a few queries of every layer; attention stays fused.

    Where somebody edits a layer's scores or pattern, or tokens see only those before them, the rows are
    cut from that pattern instead.
    Build it inside `model.intervened(...)`, so that it sees what is attached.

    Args:
        model: a HookedViT.
        queries: rows of the token axis, as a slice.
        layers: which layers; default all.

    Example:
        >>> import torch
        >>> from ttreg_interp.hooked import load
        >>> model = load("timm:test_vit?random")
        >>> rows = AttentionRows(model, slice(0, 1))
        >>> _ = model.run_with_hooks(torch.zeros(1, 3, 160, 160), fwd_hooks=rows.fwd_hooks())
        >>> rows[5].shape  # [batch, head, query, key]
        torch.Size([1, 2, 1, 101])
    """

    def __init__(self, model: Any, queries: slice, layers: Iterable[int] | None = None):
        self.model = model
        self.queries = queries
        self.layers = list(range(model.cfg.n_layers) if layers is None else layers)
        self._rows: dict[int, Tensor] = {}
        self._logits: dict[int, Tensor] = {}

    def __getitem__(self, layer: int) -> Float[Tensor, "batch head query key"]:
        """The rows of one layer in the last forward."""
        return self._rows[layer]

    def fwd_hooks(self) -> list[NamedHook]:
        """TransformerLens hooks; none of them changes an activation."""
        return [hook for layer in self.layers for hook in self._layer_hooks(layer)]

    def _layer_hooks(self, layer: int) -> list[NamedHook]:
        attn = self.model.blocks[layer].attn
        path = f"blocks.{layer}.attn."
        edited = attn.hook_attn_scores.has_hooks() or attn.hook_pattern.has_hooks()
        if edited or attn.parts.causal:
            return [(path + "hook_pattern", lambda pattern, hook: self._cut(layer, pattern))]
        rotated = "rot_" if attn.parts.rotate is not None else ""
        hooks: list[NamedHook] = [
            (f"{path}hook_{rotated}q", lambda q, hook: self._query(layer, q)),
            (f"{path}hook_{rotated}k", lambda k, hook: self._key(layer, k, attn.parts.scale)),
        ]
        if attn.hook_mask.has_hooks():
            hooks.append((path + "hook_mask", lambda mask, hook: self._masked(layer, mask)))
        return hooks

    def _cut(self, layer: int, pattern: Tensor) -> None:
        self._rows[layer] = pattern[:, :, self.queries].detach()

    def _query(self, layer: int, q: Tensor) -> None:
        self._logits[layer] = (
            q[:, self.queries].detach().transpose(1, 2)
        )  # [batch, head, query, d_head]

    def _key(self, layer: int, k: Tensor, scale: float) -> None:
        keys = k.detach().permute(0, 2, 3, 1)  # [batch, head, d_head, key]
        self._logits[layer] = self._logits[layer] @ keys * scale
        self._rows[layer] = self._logits[layer].softmax(dim=-1)

    def _masked(self, layer: int, mask: Tensor) -> None:
        self._rows[layer] = (self._logits[layer] + mask[:, :, self.queries]).softmax(dim=-1)
