"""The page: widgets, and which of them asks what of the explorer. Needs gradio."""

from dataclasses import fields
from typing import Any

import gradio as gr

from ttreg_interp.app.events import MEAN_HEAD, NO_NEURON, Chosen, Events
from ttreg_interp.app.session import Explorer
from ttreg_interp.app.settings import KINDS
from ttreg_interp.app.stage import make_stage
from ttreg_interp.app.upload import MAX_MEGABYTES, SUFFIXES

THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
"""Fonts of the machine: the default theme would fetch some from the network."""
THEME.set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    block_label_text_color="*neutral_700",
    block_title_text_color="*neutral_700",
)
"""The default greys are too pale to read for some."""
STYLE = (
    "#words th, #words td { white-space: nowrap; } #words td:first-child { white-space: normal; }"
)
"""Of the numbers, on a phone."""
Widgets = dict[str, Any]


def build(explorer: Explorer) -> gr.Blocks:
    """The page of an explorer; `launch` it."""
    with gr.Blocks(title="ttreg explore", analytics_enabled=False) as page:
        gr.Markdown(
            "# Register neurons, by hand\n"
            "Drop an image, choose what to do, watch the maps. Click any patch to see where it attends."
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=290):
                widgets = _what_to_do(explorer)
            with gr.Column(scale=5, min_width=320):
                widgets |= _what_to_see()
        with gr.Accordion("Take it along", open=False, elem_id="along"):
            widgets |= _take_along()
        _connect(page, Events(explorer), widgets)
    return page


def _what_to_do(explorer: Explorer) -> Widgets:
    """The left side: image, model, intervention."""
    return {
        "file": gr.File(
            label=f"Image, up to {MAX_MEGABYTES} MB", file_types=list(SUFFIXES), type="filepath",
            height=110, elem_id="file",
        ),
        "spec": gr.Textbox(
            explorer.spec, label="Model", interactive=explorer.may_load, elem_id="spec",
            info="SOURCE:NAME, then Enter; `ttreg models` lists the sources",
        ),
        "kind": gr.Radio(list(KINDS), value=KINDS[0], label="What to do", elem_id="kind"),
        "n_registers": gr.Slider(1, 8, value=1, step=1, label="Added tokens", elem_id="registers"),
        "semantics": gr.Radio(["paper", "reference"], value="paper", label="Semantics"),
        "fill": gr.Radio(
            ["zero", "mean", "only_outliers", "same"], value="zero", label="Other tokens keep"
        ),
        "ticked": gr.CheckboxGroup(label="Neurons that are on", elem_id="ticked"),
        "rank": gr.Button("Rank the neurons of this image", size="sm", elem_id="rank"),
        "written": gr.Textbox(
            label="Or write neurons", info="layer: neuron, neuron; layer: neuron; then Enter",
            elem_id="written",
        ),
        "picture": gr.State(),
        "pixels": gr.State(),
        "backdrop": gr.State(),
        "drawn": gr.State(()),
        "seen": gr.State(),
    }  # fmt: skip


def _what_to_see() -> Widgets:
    """The right side: what is on show, maps, numbers."""
    widgets: Widgets = {
        "layer": gr.Slider(0, 1, value=1, step=1, label="Layer", elem_id="layer", buttons=[])
    }
    with gr.Row():
        widgets |= {
            "head": gr.Dropdown(
                [("mean over heads", MEAN_HEAD)], value=MEAN_HEAD, label="Attention", elem_id="head",
                min_width=150,
            ),
            "query": gr.Dropdown(
                ["CLS"], value="CLS", label="Query", allow_custom_value=True, elem_id="query",
                min_width=150,
            ),
            "neuron": gr.Dropdown(
                [NO_NEURON], value=NO_NEURON, label="Neuron map", elem_id="neuron", min_width=150
            ),
            "log": gr.Checkbox(label="logarithmic colours", elem_id="log", min_width=150),
        }  # fmt: skip
    widgets["stage"] = make_stage()
    widgets["words"] = gr.Markdown(elem_id="words")
    return widgets


def _take_along() -> Widgets:
    """The state, to copy."""
    widgets: Widgets = {}
    for key, title, language in (
        ("snippet", "Python", "python"),
        ("json", "intervention.json, for ttreg apply --intervention", "json"),
        ("state", "state.json: everything, with the numbers", "json"),
    ):
        with gr.Tab(title):
            widgets[key] = gr.Code(label=title, language=language, elem_id=key)  # type: ignore[arg-type]
    return widgets


def _connect(page: gr.Blocks, events: Events, widgets: Widgets) -> None:
    """Which widget asks what."""

    def some(*names: str) -> list[Any]:
        return [widgets[name] for name in names]

    chosen = some(*(field.name for field in fields(Chosen)))
    shown = some("stage", "query", "words", "snippet", "json", "state")
    # One after the other, so that no older answer comes last: gradio would run each listener apart.
    in_turn: dict[str, Any] = {"concurrency_id": "page", "concurrency_limit": 1}
    in_turn["show_progress"] = "hidden"
    quietly = in_turn | {"trigger_mode": "always_last"}

    def then_refresh(event: Any) -> None:
        event.success(events.refresh, chosen, [widgets["seen"], *shown], **in_turn)

    def then_show(event: Any) -> None:
        event.success(events.show, [widgets["seen"], *chosen], shown, **in_turn)

    picture, neurons = some("picture", "pixels", "backdrop", "drawn"), some("ticked", "neuron")
    model = some("written", "ticked", "neuron", "layer", "head", "query")
    opened = events.open_model, some("spec", "picture"), [*model, *picture]
    then_refresh(page.load(*opened))
    then_refresh(widgets["spec"].submit(*opened))
    then_refresh(widgets["file"].upload(events.take_image, some("spec", "file"), picture))
    then_refresh(widgets["written"].submit(events.name_neurons, some("written"), neurons))
    then_refresh(widgets["rank"].click(events.rank, some("spec", "pixels", "ticked"), neurons))
    place, stage = some("spec", "pixels"), widgets["stage"]
    # Not the last only: gradio would send the data of the first event once more.
    every = in_turn | {"trigger_mode": "multiple"}
    then_show(stage.select(events.select, place, some("query"), **every))
    then_refresh(stage.input(events.draw, place, some("drawn"), **every))
    fits = events.fitting, some("kind"), some("n_registers", "semantics", "fill")
    widgets["kind"].input(*fits, show_progress="hidden")
    for name in ("kind", "ticked", "n_registers", "semantics", "fill", "layer", "neuron"):
        widgets[name].input(events.refresh, chosen, [widgets["seen"], *shown], **quietly)
    for name in ("head", "query", "log"):
        widgets[name].input(events.show, [widgets["seen"], *chosen], shown, **quietly)
