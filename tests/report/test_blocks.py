"""Blocks of patches: means for queries, sums for keys, prefix tokens untouched."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ttreg_interp.hooked import TokenLayout
from ttreg_interp.report.blocks import TokenBlocks

layouts = st.builds(
    TokenLayout,
    n_cls=st.integers(0, 2),
    n_trained_registers=st.integers(0, 2),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    n_test_time_registers=st.integers(0, 2),
)


def patches_by_block(blocks: TokenBlocks) -> list[list[int]]:
    """Token rows of each block in raster order, told by a loop."""
    layout, (rows, columns) = blocks.layout, blocks.grid
    members: list[list[int]] = [[] for _ in range(rows * columns)]
    for patch in range(layout.n_patches):
        row, column = divmod(patch, layout.width)
        block = row // blocks.side * columns + column // blocks.side
        members[block].append(layout.patches.start + patch)
    return members


@given(layouts, st.integers(1, 7))
def test_blocks_are_means_or_sums_of_their_patches(layout, side):
    blocks = TokenBlocks(layout, side)
    tokens = torch.rand(2, 3, layout.n_tokens, dtype=torch.float64)
    members = patches_by_block(blocks)
    start = layout.patches.start
    means, sums = blocks.mean(tokens), blocks.sum(tokens)
    for whole in (means, sums):
        assert whole.shape[-1] == blocks.n_rows == start + len(members)
        assert torch.equal(whole[..., :start], tokens[..., :start])
    for block, rows in enumerate(members):
        torch.testing.assert_close(means[..., start + block], tokens[..., rows].mean(dim=-1))
        torch.testing.assert_close(sums[..., start + block], tokens[..., rows].sum(dim=-1))


@given(layouts, st.integers(1, 7))
def test_sums_lose_no_attention(layout, side):
    tokens = torch.rand(layout.n_tokens, dtype=torch.float64).softmax(dim=0)
    torch.testing.assert_close(TokenBlocks(layout, side).sum(tokens).sum(), tokens.sum())


@given(layouts)
def test_blocks_of_one_patch_change_nothing(layout):
    tokens = torch.rand(4, layout.n_tokens)
    assert TokenBlocks(layout).mean(tokens) is tokens
