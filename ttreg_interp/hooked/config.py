"""The numbers that describe a hooked model, by TransformerLens' names."""

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class HookedViTConfig:
    """What TransformerLens' tools read from `model.cfg`."""

    model_name: str
    """The spec that the model was loaded from, or the class of an object in hand."""
    n_layers: int
    """Blocks."""
    d_model: int
    """Width of the residual stream."""
    n_heads: int
    """Heads of one layer."""
    d_head: int
    """Width of a head."""
    d_mlp: int
    """Neurons of one MLP."""
    n_ctx: int
    """Tokens at the model's own image size."""
    d_vocab: int
    """Width of the output."""
    gated_mlp: bool
    """Whether the MLPs are gated."""
    normalization_type: str
    """'LN' or 'RMS'."""
    device: torch.device
    """Where the parameters are."""
    dtype: torch.dtype
    """Of the parameters."""
    final_rms: bool = False
    """Whether the final norm is an RMSNorm."""
    n_key_value_heads: int | None = None
    """None: as many as query heads (grouped heads are expanded before the hook points)."""
    attn_only: bool = False
    """Never: every block has an MLP."""
    is_visual_model: bool = True
    """Whether it reads images."""
    fast_cpu: Literal["float32", "bfloat16"] | None = None
    """Precision of the linears' other kernels, None where torch's own run."""


@dataclass(frozen=True)
class HookedLMConfig(HookedViTConfig):
    """The same of a language model: `n_ctx` is its longest text, `d_vocab` its vocabulary."""

    is_visual_model: bool = False
    """It reads texts."""
    parallel_attn_mlp: bool = False
    """Whether the MLP stands beside attention."""
