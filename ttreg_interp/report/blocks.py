"""Blocks of patches: a coarser token axis, for models with more tokens than a page can hold."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ttreg_interp.hooked import TokenLayout


@dataclass(frozen=True)
class TokenBlocks:
    """A token axis whose patches are taken together in square blocks; prefix tokens stay single.

    Example:
        >>> TokenBlocks(TokenLayout(1, 0, height=5, width=7), side=2).grid
        (3, 4)
    """

    layout: TokenLayout
    """The token axis."""
    side: int = 1
    """Patches along one side of a block; 1: every patch stands for itself."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks; those at the lower and right edge may hold fewer patches."""
        return math.ceil(self.layout.height / self.side), math.ceil(self.layout.width / self.side)

    @property
    def n_rows(self) -> int:
        """Prefix tokens and blocks together."""
        return self.layout.patches.start + math.prod(self.grid)

    def mean(self, tokens: Float[Tensor, "*leading token"]) -> Float[Tensor, "*leading block"]:
        """Mean over the patches of each block: for queries."""
        return self._pooled(tokens, divisor=None)

    def sum(self, tokens: Float[Tensor, "*leading token"]) -> Float[Tensor, "*leading block"]:
        """Sum over the patches of each block: for keys, whose attention adds up."""
        return self._pooled(tokens, divisor=1)

    def _pooled(self, tokens: Tensor, divisor: int | None) -> Tensor:
        if self.side == 1:
            return tokens
        pooled = avg_pool2d(
            self.layout.grid(tokens).reshape(1, -1, self.layout.height, self.layout.width),
            self.side,
            ceil_mode=True,
            divisor_override=divisor,
        )
        blocks = pooled.reshape(*tokens.shape[:-1], math.prod(self.grid))
        return torch.cat((tokens[..., : self.layout.patches.start], blocks), dim=-1)
