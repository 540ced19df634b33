"""Where a family keeps its parts: what a source file tells HookedViT.

A part is the source's own module, or a short function over the source's own modules. Parameters
are read when they are used, so moving or loading the source after wrapping it is safe.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

Tokens = Float[Tensor, "batch token d_model"]
Heads = Float[Tensor, "batch token head d_head"]
Pixels = Float[Tensor, "batch channel height width"]
Positions = Any
"""What the embedding hands to rotary attention: a family's own affair, None without rotation."""


@runtime_checkable
class OutputLinear(Protocol):
    """A linear map out of a layer: torch's Linear, or what reads like one."""

    @property
    def weight(self) -> Tensor:
        """[d_model, in]."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """[d_model]."""
        ...

    def __call__(self, x: Tensor, /) -> Tensor:
        """x weight^T + bias."""
        ...


@dataclass(frozen=True)
class AttentionParts:
    """One attention layer."""

    n_heads: int
    """Query heads."""
    d_head: int
    """Width of a head."""
    qkv: Callable[[Tokens], tuple[Heads, Heads, Heads]]
    """Queries, keys and values, after a query/key norm and before rotation."""
    qkv_weights: Callable[[], tuple[Tensor, Tensor, Tensor]]
    """Weights of q, k, v, each [n_heads * d_head, d_model]."""
    qkv_biases: Callable[[], tuple[Tensor | None, Tensor | None, Tensor | None]]
    """Biases of q, k, v, each [n_heads * d_head], or None."""
    out: OutputLinear
    """The output projection."""
    scale: float
    """Factor on query . key."""
    rotate: Callable[[Tensor, Tensor, Positions], tuple[Tensor, Tensor]] | None = None
    """Rotary embedding of queries and keys [batch, head, token, d_head]; prefix rows unturned."""
    inner_norm: nn.Module | None = None
    """A norm between the heads and the output projection."""
    gate: Callable[[Tokens], Tensor] | None = None
    """Factor on the heads [batch, token, head * d_head], computed from the layer's input."""
    gamma: Callable[[], Tensor] | None = None
    """LayerScale on the layer's output, [d_model]."""
    causal: bool = False
    """Whether a token attends to itself and what stands before it only."""
    window: int | None = None
    """Of a causal layer: how many tokens a token sees, itself included; None: all before it. Needs
    `positions.n_given`; rows in front of the given tokens are seen by all."""
    softcap: float | None = None
    """c of scores bounded by c tanh(score / c), before the mask."""
    post_norm: nn.Module | None = None
    """A norm on what the layer adds to the residual stream."""


@dataclass(frozen=True)
class MLPParts:
    """One MLP, plain or gated: out(norm(act(pre) * linear))."""

    project: Callable[[Tokens], tuple[Tensor, Tensor | None]]
    """The input of the nonlinearity, and the linear branch of a gated MLP (else None)."""
    act: Callable[[Tensor], Tensor]
    """The nonlinearity."""
    out: OutputLinear
    """The last linear, which reads the neurons."""
    in_weights: Callable[[], tuple[Tensor, Tensor | None]]
    """Weight [neuron, d_model] and bias [neuron] of the branch without a nonlinearity.

    In a plain MLP there is one branch only: the one that the nonlinearity reads.
    """
    gate_weights: Callable[[], tuple[Tensor, Tensor | None]] | None = None
    """Weight and bias of the branch under the nonlinearity of a gated MLP."""
    inner_norm: nn.Module | None = None
    """A norm between the nonlinearity and the last linear."""
    gamma: Callable[[], Tensor] | None = None
    """LayerScale on the MLP's output, [d_model]."""
    post_norm: nn.Module | None = None
    """A norm on what the layer adds to the residual stream."""


@dataclass(frozen=True)
class BlockParts:
    """One pre-norm block; its layers may also have a norm behind them."""

    ln1: nn.Module
    """Norm before attention."""
    attn: AttentionParts
    """Attention."""
    ln2: nn.Module
    """Norm before the MLP."""
    mlp: MLPParts
    """MLP."""
    parallel: bool = False
    """Whether the MLP reads the block's input, beside attention instead of after it."""


@dataclass(frozen=True)
class ViTParts:
    """A whole vision transformer."""

    family: str
    """Library and class, as errors and tables name it."""
    embed: Callable[[Pixels], tuple[Tokens, Positions]]
    """Pixels to tokens, positions added, before `ln_pre`; and what rotary attention needs."""
    blocks: tuple[BlockParts, ...]
    """The blocks in order."""
    pool: Callable[[Tokens], Tensor]
    """Tokens to one vector (or a few) per image."""
    project: Callable[[Tensor], Tensor]
    """Pooled vectors to the model's output."""
    reference: Callable[[Pixels], Tensor]
    """The source's own forward, as the tensor that HookedViT returns: what parity is measured on."""
    image_size: tuple[int, int]
    """Height and width in pixels that the model was made for."""
    patch_size: tuple[int, int]
    """Height and width of a patch in pixels."""
    ln_pre: nn.Module | None = None
    """A norm between embedding and first block."""
    ln_final: nn.Module | None = None
    """The final norm."""
    norm_after_pool: bool = False
    """Whether the final norm reads the pooled vector instead of the tokens."""
    unembed: Callable[[], tuple[Tensor, Tensor | None]] | None = None
    """Weight [output, d_model] and bias of a linear `project`; None where it is not linear."""
    is_classifier: bool = False
    """Whether the output is logits over classes."""
    n_cls: int = 1
    """Class rows of the layout."""
    n_trained_registers: int = 0
    """Trained registers of the layout."""
    resizable: bool = False
    """Whether `embed` takes images of other sizes."""
    n_channels: int = 3
    """Colour channels."""
