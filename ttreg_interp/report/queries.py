"""Which queries a report can show: every token, or, where that is too much, blocks of patches."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ttreg_interp.hooked import TokenLayout


@dataclass(frozen=True)
class QueryBlocks:
    """Queries of one pattern: each prefix token by itself, patches averaged over square blocks.

    Example:
        >>> QueryBlocks(TokenLayout(1, 0, height=5, width=7), side=2).grid
        (3, 4)
    """

    layout: TokenLayout
    """The token axis."""
    side: int = 1
    """Patches along one side of a block; 1: every patch is a query of its own."""

    @classmethod
    def within(cls, layout: TokenLayout, n_patterns: int, budget: int) -> "QueryBlocks":
        """The finest blocks with which `n_patterns` patterns have at most `budget` values.

        One block over the whole grid is the coarsest.
        """
        for side in range(1, max(layout.height, layout.width)):
            blocks = cls(layout, side)
            if n_patterns * blocks.n_queries * layout.n_tokens <= budget:
                return blocks
        return cls(layout, max(layout.height, layout.width))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks; those at the lower and right edge may be smaller."""
        return math.ceil(self.layout.height / self.side), math.ceil(self.layout.width / self.side)

    @property
    def n_queries(self) -> int:
        """Prefix tokens and blocks together."""
        return self.layout.patches.start + math.prod(self.grid)

    def mean(
        self, pattern: Float[Tensor, "batch head query key"]
    ) -> Float[Tensor, "batch head block key"]:
        """The pattern's rows, those of patches averaged over the blocks."""
        if self.side == 1:
            return pattern
        start = self.layout.patches.start
        grid = (self.layout.height, self.layout.width)
        patches = pattern[:, :, start:].unflatten(2, grid).permute(0, 1, 4, 2, 3)
        blocks = avg_pool2d(patches.flatten(0, 1), self.side, ceil_mode=True)
        blocks = blocks.unflatten(0, patches.shape[:2]).flatten(3).transpose(2, 3)
        return torch.cat((pattern[:, :, :start], blocks), dim=2)
