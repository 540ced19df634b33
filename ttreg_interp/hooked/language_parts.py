"""Where a family of language models keeps its parts: what a source file tells HookedLM."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ttreg_interp.errors import InterventionError
from ttreg_interp.hooked.parts import BlockParts, Positions, Tokens

Ids = Int[Tensor, "batch token"]
Logits = Float[Tensor, "batch token output"]


@dataclass(frozen=True)
class LMParts:
    """A whole causal language model."""

    family: str
    """Library and class, as errors and tables name it."""
    embed: Callable[[Ids], Tokens]
    """Token ids to what enters block 0, learned positions added."""
    positions: Callable[[Tokens, int], Sequence[Positions]]
    """For a residual stream and a number of given tokens, what rotary attention needs in every block."""
    blocks: tuple[BlockParts, ...]
    """The blocks in order."""
    ln_final: nn.Module
    """The final norm."""
    head: nn.Linear
    """Normed tokens to logits."""
    reference: Callable[[Ids], Logits]
    """The source's own forward: what parity is measured on."""
    n_ctx: int
    """Longest text, in tokens."""
    softcap: float | None = None
    """c of logits bounded by c tanh(logit / c)."""
    ln_pre: None = None
    """No family here has a norm between embedding and first block."""
    norm_after_pool: bool = False
    """The final norm reads tokens: nothing is pooled."""

    @property
    def unembed(self) -> Callable[[], tuple[Tensor, Tensor | None]]:
        """Weight [output, d_model] and bias of the head."""
        return lambda: (self.head.weight, self.head.bias)


@dataclass(frozen=True)
class RotaryTable:
    """Cosines and sines of the given tokens' positions."""

    cos: Float[Tensor, "1 token d_rotary"]
    """One row a given token."""
    sin: Float[Tensor, "1 token d_rotary"]
    """The same."""

    @property
    def n_given(self) -> int:
        """Given tokens."""
        return self.cos.shape[1]


def rotate(q: Tensor, k: Tensor, table: RotaryTable) -> tuple[Tensor, Tensor]:
    """Queries and keys [batch, head, row, d_head], turned by position.

    Rows in front of the given tokens (test-time registers; the key of an attention bias) stand at
    position 0, where the turn is none: the given tokens keep the positions that they have without.
    """
    return _turned(q, table), _turned(k, table)


def _turned(x: Tensor, table: RotaryTable) -> Float[Tensor, "batch head row d_head"]:
    in_front = x.shape[2] - table.n_given
    if in_front < 0:
        raise InterventionError(
            f"{x.shape[2]} rows are fewer than the {table.n_given} tokens of the text: rows were "
            "deleted, and rotary attention cannot tell which. Hide tokens with MaskTokens."
        )
    cos, sin = (
        torch.cat((part[:, :1].expand(-1, in_front, -1), part), dim=1)[:, None]
        for part in (table.cos, table.sin)
    )
    turned, kept = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    one, other = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat((-other, one), dim=-1) * sin
    return torch.cat((turned, kept), dim=-1)


def rotary_positions(
    rotary: Callable[..., tuple[Tensor, Tensor]], kinds: Sequence[tuple[str, ...]]
) -> Callable[[Tokens, int], Sequence[RotaryTable]]:
    """`LMParts.positions` by the source's own table of angles.

    Args:
        rotary: of a residual stream, positions, and what `kinds` holds.
        kinds: for every block, what names its table; empty where there is one only.
    """

    def positions(residual: Tokens, n_given: int) -> Sequence[RotaryTable]:
        ids = torch.arange(n_given, device=residual.device)[None]
        tables = {kind: RotaryTable(*rotary(residual, ids, *kind)) for kind in set(kinds)}
        return [tables[kind] for kind in kinds]

    return positions
