"""How much attention a run keeps: full patterns of small models, blocks of patches of large ones."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.hooked import HookedViT, TokenLayout
from ttreg_interp.interventions import Intervention
from ttreg_interp.report.blocks import TokenBlocks
from ttreg_interp.report.codes import AttentionCode

BUDGET = {"tokens": 13_000_000, "heads": 3_000_000}
"""Attention values that are kept, all images and arms together. Every query of 12 images, 12
layers, 198 tokens and two arms takes 11.3 million; a report of that size is below 10 MB."""


@dataclass(frozen=True)
class RowSet:
    """Attention rows: mean over the queries of a block, sum over the keys of a block."""

    queries: TokenBlocks
    """The query axis."""
    keys: TokenBlocks
    """The key axis."""
    by_head: bool
    """Each head by itself, or their mean."""

    def read(
        self, pattern: Float[Tensor, "batch head query key"]
    ) -> Float[Tensor, "batch head_or_mean query_block elsewhere_and_key_block"]:
        """The rows of one layer.

        The first key is what goes elsewhere than to tokens: to the keys of an attention bias,
        which stand in front.
        """
        pattern = pattern.float()
        if not self.by_head:
            pattern = pattern.mean(dim=1, keepdim=True)
        rows = self.queries.mean(pattern.transpose(2, 3)).transpose(2, 3)
        elsewhere, tokens = rows.tensor_split((rows.shape[3] - self.keys.layout.n_tokens,), dim=3)
        return torch.cat((elsewhere.sum(dim=3, keepdim=True), self.keys.sum(tokens)), dim=3)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `run.json`."""
        return {"query": self.queries.side, "key": self.keys.side, "by_head": self.by_head}


@dataclass(frozen=True)
class Plan:
    """How the maps of one arm are laid out."""

    layout: TokenLayout
    """The token axis under this arm."""
    rows: Mapping[str, RowSet]
    """`exact`: mean over heads, prefix tokens and the mean patch as queries, every key, as floats;
    `tokens`: mean over heads, queries as fine as can be; `heads`: by head, keys as fine as can be;
    these two as codes."""
    code: AttentionCode
    """How attention is stored."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `run.json`."""
        return {
            "layout": asdict(self.layout),
            "rows": {name: rows.to_dict() for name, rows in self.rows.items()},
        }


def plan_arms(
    model: HookedViT, pixels_shape: torch.Size, arms: Mapping[str, Intervention], n_images: int
) -> dict[str, Plan]:
    """The finest plans that stay in the budget; blocks are the same under every arm."""
    bare = model.layout(pixels_shape)
    added = {name: intervention.n_added_tokens for name, intervention in arms.items()}
    longest = bare.with_test_time_registers(max(added.values()))
    n_patterns = n_images * len(arms) * model.cfg.n_layers
    finest = {
        "tokens": _first_within(_queries_first(longest), n_patterns, BUDGET["tokens"]),
        "heads": _first_within(
            _keys_first(longest), n_patterns * model.cfg.n_heads, BUDGET["heads"]
        ),
    }
    whole = max(bare.height, bare.width)
    finest["exact"] = TokenBlocks(longest, whole), TokenBlocks(longest, 1)
    return {
        name: Plan(
            layout := bare.with_test_time_registers(n_added),
            {
                kind: RowSet(
                    TokenBlocks(layout, queries.side),
                    TokenBlocks(layout, keys.side),
                    by_head=kind == "heads",
                )
                for kind, (queries, keys) in finest.items()
            },
            AttentionCode(bare.n_tokens),
        )
        for name, n_added in added.items()
    }


Axes = tuple[TokenBlocks, TokenBlocks]
"""Queries and keys."""


def _queries_first(layout: TokenLayout) -> list[Axes]:
    """Ever coarser queries; keys single, or else as coarse as the queries."""
    return [
        (TokenBlocks(layout, side), TokenBlocks(layout, key_side))
        for side in _sides(layout)
        for key_side in (1, side)
    ]


def _keys_first(layout: TokenLayout) -> list[Axes]:
    """Ever coarser keys; for each, queries from as coarse as these to one block."""
    sides = _sides(layout)
    return [
        (TokenBlocks(layout, side), TokenBlocks(layout, key_side))
        for key_side in sides
        for side in sides[key_side - 1 :]
    ]


def _sides(layout: TokenLayout) -> range:
    return range(1, max(layout.height, layout.width) + 1)


def _first_within(candidates: list[Axes], n_patterns: int, budget: int) -> Axes:
    """The first within the budget, or the last."""
    return next(
        (axes for axes in candidates if n_patterns * axes[0].n_rows * axes[1].n_rows <= budget),
        candidates[-1],
    )
