"""What the stage draws, and what it takes from a browser."""

import base64
import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.report.models import KINDS, pixels_for, tiny
from ttreg_interp.app.look import MEAN_PATCH, View, look
from ttreg_interp.errors import DataError
from ttreg_interp.interventions import TestTimeRegister

pytest.importorskip("gradio", reason="gradio is not installed (pip install 'ttreg-interp[app]')")
from ttreg_interp.app.stage import drawn_patches, patch_name, shown_maps, shown_picture

REGISTER = TestTimeRegister({0: [3]})


@pytest.mark.parametrize("kind", KINDS)
def test_the_maps_are_the_patches_in_raster_order(kind):
    model = tiny(kind)
    query = View(1, query="patch 1,2", neuron=(0, 3))
    seen = look(model, pixels_for(model, 1), REGISTER, query)
    shown = shown_maps(seen, query)
    assert [pair["kind"] for pair in shown["pairs"]] == ["norm", "attention", "neuron"]
    assert shown["query"] == 1 * model.layout().width + 2
    for row, (side, numbers) in enumerate(zip(seen.both, shown["pairs"][0]["maps"], strict=True)):
        assert len(numbers) == model.layout().n_patches
        assert torch.tensor(numbers) == pytest.approx(side.patch_norms, rel=1e-4)
        attention = side.attention(query)[side.layout.patches]
        assert torch.tensor(shown["pairs"][1]["maps"][row]) == pytest.approx(attention, rel=1e-4)


def test_a_query_that_a_side_lacks_has_no_map_there():
    model = tiny()
    register = View(1, query="test-time register 0")
    shown = shown_maps(look(model, pixels_for(model, 1), REGISTER, register), register)
    intact, intervened = shown["pairs"][1]["maps"]
    assert intact is None
    assert len(intervened) == model.layout().n_patches
    assert shown["query"] is None


@pytest.mark.parametrize(
    ("view", "title"),
    [
        (View(2), "Attention of [CLS] in layer 2, mean over heads"),
        (View(0, head=1, query=MEAN_PATCH), "Attention of mean over patches in layer 0, head 1"),
    ],
)
def test_titles_say_what_is_on_show(view, title):
    model = tiny()
    shown = shown_maps(look(model, pixels_for(model, 1), REGISTER, view), view)
    assert shown["pairs"][1]["title"] == title


def test_the_picture_covers_the_grid():
    model = tiny("non-square")
    shown = shown_picture(model, pixels_for(model, 1))
    content = base64.b64decode(shown["picture"].removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(content)).size == (40, 24)
    assert (shown["height"], shown["width"]) == (3, 5)


@given(st.sets(st.integers(0, 14)))
def test_patches_of_a_drawing_are_rows_and_columns(numbers):
    drawn = drawn_patches(list(numbers), (3, 5))
    assert {row * 5 + column for row, column in drawn} == numbers


@pytest.mark.parametrize("sent", [15, -1, 1.5, "3", True, None, [[1]], {"a": 1}, "<b>"])
def test_other_things_from_a_browser_are_refused(sent):
    with pytest.raises(DataError, match="Patches of a grid of 3 x 5 have numbers 0 to 14; found"):
        drawn_patches([sent], (3, 5))
    with pytest.raises(DataError, match="Load the page again"):
        patch_name(sent, (3, 5))
