"""The stage: the picture and its maps, as a widget that is clicked, drawn on and walked by keys.

What is drawn travels as numbers and is coloured in the browser by the report's own scripts. Strokes
come back as patches, not as pictures: a widget whose value must be uploaded first would hold up
every event that reads it, so that an old choice could overtake a newer one.
"""

from importlib import resources
from typing import Any

import gradio as gr
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.app.look import MEAN_PATCH, Look, Seen, View
from ttreg_interp.errors import DataError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.report.html import page_file
from ttreg_interp.report.thumbnails import data_uri, thumbnails

Patches = tuple[tuple[int, int], ...]
"""(row, column) of patches."""


def make_stage() -> gr.HTML:
    """The widget. Its events: `select` with the patch clicked, `input` with the patches drawn on."""
    files = resources.files("ttreg_interp.app") / "page_files"
    return gr.HTML(
        value=None,
        html_template='<div class="stage" role="group" aria-label="Picture and maps"></div>',
        css_template=(files / "stage.css").read_text(encoding="utf-8"),
        js_on_load=page_file("colour.js") + (files / "stage.js").read_text(encoding="utf-8"),
        elem_id="stage",
    )


def shown_picture(
    model: HookedViT, pixels: Float[Tensor, "1 channel height width"]
) -> dict[str, Any]:
    """The picture as the model sees it, and its grid of patches."""
    layout = model.layout(pixels.shape)
    picture = data_uri(thumbnails(pixels, model.preprocess)[0])
    return {"picture": picture, "height": layout.height, "width": layout.width}


def shown_maps(look: Look, view: View) -> dict[str, Any]:
    """Pairs of maps, each of numbers by patch; null where a pass has no such query."""
    n_keys = look.intact.layout.n_tokens
    head = "mean over heads" if view.head is None else f"head {view.head}"
    query = "[CLS]" if view.query == "CLS" else view.query
    layer = f"layer {view.layer}"
    pairs = [
        _pair("norm", f"Patch norm after {layer}", [seen.norms for seen in look.both], look),
        _pair(
            "attention",
            f"Attention of {query} in {layer}, {head}",
            [seen.attention(view) for seen in look.both],
            look,
        )
        | {"unit": 1 / n_keys},
    ]
    if view.neuron is not None:
        title = "Activation of neuron {1} in layer {0}".format(*view.neuron)
        pairs.append(_pair("neuron", title, [seen.neuron for seen in look.both], look))
    return {"pairs": pairs, "query": _query_patch(look.intact, view)}


def _pair(kind: str, title: str, rows: list[Tensor | None], look: Look) -> dict[str, Any]:
    maps = [
        None if row is None else [float(f"{value:.5g}") for value in row[seen.layout.patches]]
        for seen, row in zip(look.both, rows, strict=True)
    ]
    return {"kind": kind, "title": title, "maps": maps, "unit": 0}


def _query_patch(seen: Seen, view: View) -> int | None:
    """The number of the patch that is the query."""
    if view.query == MEAN_PATCH or not view.query.startswith("patch "):
        return None
    return seen.layout.row_names().index(view.query) - seen.layout.patches.start


def patch_name(patch: Any, grid: tuple[int, int]) -> str:
    """The query of a patch that was clicked.

    Raises:
        DataError: no such patch.

    Example:
        >>> patch_name(9, (4, 8))
        'patch 1,1'
    """
    return "patch {},{}".format(*drawn_patches([patch], grid)[0])


def drawn_patches(drawn: Any, grid: tuple[int, int]) -> Patches:
    """Rows and columns of the patches that a browser says were drawn on.

    Args:
        drawn: their numbers in raster order.
        grid: height and width in patches.

    Raises:
        DataError: not a list of numbers of patches.

    Example:
        >>> drawn_patches([9, 3], (4, 8))
        ((0, 3), (1, 1))
    """
    n_patches = grid[0] * grid[1]
    numbers = drawn if isinstance(drawn, list) else [drawn]
    if not all(type(number) is int and 0 <= number < n_patches for number in numbers):
        raise DataError(
            f"Patches of a grid of {grid[0]} x {grid[1]} have numbers 0 to {n_patches - 1}; found "
            f"{str(drawn)[:60]}. Load the page again."
        )
    return tuple(divmod(number, grid[1]) for number in sorted(set(numbers)))
