"""Token layouts: which rows are which."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttreg_interp.errors import LayoutError
from ttreg_interp.hooked import TokenLayout

layouts = st.builds(
    TokenLayout,
    n_cls=st.integers(0, 2),
    n_trained_registers=st.integers(0, 4),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
    n_test_time_registers=st.integers(0, 3),
)


@given(layouts)
def test_the_parts_of_a_layout_cover_the_token_axis_once(layout):
    parts = (layout.cls, layout.trained_registers, layout.test_time_registers, layout.patches)
    rows = [row for part in parts for row in range(layout.n_tokens)[part]]
    assert rows == list(range(layout.n_tokens))
    assert len(layout.row_names()) == layout.n_tokens == len(set(layout.row_names()))


@given(layouts)
def test_dropping_the_inserted_registers_gives_the_tokens_back(layout):
    bare = layout.with_test_time_registers(0)
    tokens = torch.randn(2, bare.n_tokens, 3)
    registers = torch.randn(2, layout.n_test_time_registers, 3)
    longer = bare.insert_registers(tokens, registers)
    assert torch.equal(longer[:, layout.test_time_registers], registers)
    assert torch.equal(layout.drop_registers(longer), tokens)


@given(layouts)
def test_the_grid_is_the_patches_in_raster_order(layout):
    rows = torch.arange(layout.n_tokens)
    grid = layout.grid(rows)
    assert grid.shape == (layout.height, layout.width)
    assert torch.equal(grid.flatten(), rows[layout.patches])
    assert torch.equal(layout.grid(rows[layout.patches]), grid)
    assert torch.equal(layout.grid(torch.stack((rows, rows), dim=1), token_axis=0)[..., 0], grid)


@given(layouts)
def test_the_length_of_the_token_axis_tells_the_test_time_registers(layout):
    assert layout.with_test_time_registers(0).of_length(layout.n_tokens) == layout


def test_a_token_axis_of_another_length_is_refused():
    layout = TokenLayout(n_cls=1, n_trained_registers=0, height=2, width=2)
    with pytest.raises(
        LayoutError, match="has 7 rows; the layout has 5 tokens, of which 4 are patches"
    ):
        layout.grid(torch.zeros(7))
    with pytest.raises(LayoutError, match="3 token rows are fewer than the 5"):
        layout.of_length(3)
    with pytest.raises(LayoutError, match="counts >= 0"):
        TokenLayout(n_cls=-1, n_trained_registers=0, height=2, width=2)
