"""The page: widgets, and which of them asks what of the explorer. Needs gradio."""

import html
from collections.abc import Callable
from functools import wraps
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from ttreg_interp.app.look import Look, coloured, drawing_of
from ttreg_interp.app.session import Explorer, first_picture, opened_file
from ttreg_interp.app.settings import (
    KINDS,
    Settings,
    drawn_patches,
    parse_neurons,
    written_neurons,
)
from ttreg_interp.app.upload import MAX_MEGABYTES, SUFFIXES
from ttreg_interp.errors import TTRegError
from ttreg_interp.interventions import NeuronSet

THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
"""Fonts of the machine: the default theme would fetch some from the network."""


def said(event: Callable[..., Any]) -> Callable[..., Any]:
    """An event whose errors become a message; the page stays as it is."""

    @wraps(event)
    def guarded(*inputs: Any) -> Any:
        try:
            return event(*inputs)
        except TTRegError as error:
            gr.Warning(html.escape(str(error)), duration=20, title="Not possible")
            return gr.skip()

    return guarded


def build(explorer: Explorer) -> gr.Blocks:
    """The page of an explorer; `launch` it."""
    with gr.Blocks(title="ttreg explore", analytics_enabled=False) as page:
        gr.Markdown(
            "# Register neurons, by hand\nDrop an image, choose what to do, watch the maps."
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                chosen = _choices(explorer)
            with gr.Column(scale=3, min_width=320):
                shown = _maps()
        with gr.Accordion("Take it along", open=False):
            shown["snippet"] = gr.Code(label="Python", language="python", elem_id="snippet")
            shown["json"] = gr.Code(
                label="intervention.json, for ttreg apply MODEL --intervention", language="json",
                elem_id="json",
            )  # fmt: skip
        _connect(page, _Events(explorer), chosen, shown)
    return page


def _choices(explorer: Explorer) -> dict[str, Any]:
    """The widgets of the left side."""
    return {
        "file": gr.File(
            label=f"Image, up to {MAX_MEGABYTES} MB", file_types=list(SUFFIXES), type="filepath",
            height=110, elem_id="file",
        ),
        "canvas": gr.ImageEditor(
            label="As the model sees it; draw where outliers shall go", sources=(), transforms=(),
            layers=False, type="numpy", brush=gr.Brush(default_size=30, colors=["#ff4d6d"]),
            elem_id="canvas",
        ),
        "spec": gr.Textbox(
            explorer.spec, label="Model", interactive=explorer.may_load, elem_id="spec",
            info="SOURCE:NAME, then Enter; `ttreg models` lists the sources",
        ),
        "kind": gr.Radio(list(KINDS), value=KINDS[0], label="What to do", elem_id="kind"),
        "written": gr.Textbox(
            label="Neurons", info="layer: neuron, neuron; layer: neuron; then Enter",
            elem_id="written",
        ),
        "ticked": gr.CheckboxGroup(label="Neurons that are on", elem_id="ticked"),
        "n_registers": gr.Slider(1, 8, value=1, step=1, label="Added tokens", elem_id="registers"),
        "semantics": gr.Radio(["paper", "reference"], value="paper", label="Semantics"),
        "fill": gr.Radio(
            ["zero", "mean", "only_outliers", "same"], value="zero", label="Other tokens keep"
        ),
        "picture": gr.State(),
        "pixels": gr.State(),
    }  # fmt: skip


def _maps() -> dict[str, Any]:
    """The widgets of the right side."""
    shown: dict[str, Any] = {
        "layer": gr.Slider(0, 1, value=1, step=1, label="Layer", elem_id="layer")
    }
    for what, title in (("norms", "Patch norm"), ("attention", "Attention to patches")):
        with gr.Row():
            for when in ("intact", "intervened"):
                with gr.Column(min_width=150):
                    gr.Markdown(f"{title}, {when}")
                    shown[f"{what}, {when}"] = gr.Image(
                        show_label=False, format="png", interactive=False, buttons=["download"],
                        elem_id=f"{what}-{when}",
                    )  # fmt: skip
    gr.Markdown("Dark is zero; each pair has one colour scale, up to its largest value.")
    shown["words"] = gr.Markdown(elem_id="words")
    shown["look"] = gr.State()
    return shown


def _connect(page: gr.Blocks, events: "_Events", chosen: dict, shown: dict) -> None:
    """Which widget asks what."""
    maps = [shown[key] for key in shown if key not in ("layer", "snippet", "json", "look")]
    settings = ("kind", "ticked", "n_registers", "semantics", "fill", "canvas")
    state = [chosen["spec"], chosen["pixels"], shown["layer"], *(chosen[key] for key in settings)]
    results = [shown["look"], *maps, shown["snippet"], shown["json"]]
    picture = [chosen[key] for key in ("picture", "pixels", "canvas")]
    model = [chosen["written"], chosen["ticked"], shown["layer"], *picture]

    def then_refresh(event: Any) -> None:
        event.success(events.refresh, state, results, show_progress="hidden")

    then_refresh(page.load(events.open_model, [chosen["spec"], chosen["picture"]], model))
    then_refresh(
        chosen["spec"].submit(events.open_model, [chosen["spec"], chosen["picture"]], model)
    )
    then_refresh(
        chosen["file"].upload(events.take_image, [chosen["spec"], chosen["file"]], picture)
    )
    then_refresh(
        chosen["written"].submit(events.name_neurons, [chosen["written"]], [chosen["ticked"]])
    )
    for key in settings:
        widget = chosen[key]
        change = widget.apply if key == "canvas" else widget.input
        change(events.refresh, state, results, show_progress="hidden", trigger_mode="always_last")
    chosen["canvas"].input(
        events.refresh, state, results, show_progress="hidden", trigger_mode="always_last"
    )
    shown["layer"].input(
        events.show, [shown["look"], shown["layer"]], maps, show_progress="hidden",
        trigger_mode="always_last",
    )  # fmt: skip


class _Events:
    """What happens when a widget changes: widgets' values in, widgets' values out."""

    def __init__(self, explorer: Explorer):
        self.explorer = explorer
        for name in ("open_model", "take_image", "name_neurons", "refresh", "show"):
            setattr(self, name, said(getattr(self, name)))

    def open_model(self, spec: str, picture: Image.Image | None) -> tuple[Any, ...]:
        """Neurons and layers of a model, and the picture as it sees it."""
        model, spec = self.explorer.model(spec), spec.strip()
        neurons = self.explorer.known_neurons(spec)
        last = model.cfg.n_layers - 1
        return (
            written_neurons(neurons),
            _ticks(neurons),
            gr.Slider(maximum=last, value=last),
            *self._prepared(spec, picture or first_picture()),
        )

    def take_image(self, spec: str, path: str | None) -> tuple[Any, ...]:
        """The uploaded picture."""
        return self._prepared(spec, opened_file(path))

    def _prepared(self, spec: str, picture: Image.Image | None) -> tuple[Any, ...]:
        if picture is None:
            return None, None, None
        pixels, seen = self.explorer.prepare(spec, picture)
        width, height = seen.size
        canvas = gr.ImageEditor(
            value={"background": np.asarray(seen), "layers": [], "composite": None},
            canvas_size=(width, height),
        )
        return picture, pixels, canvas

    def name_neurons(self, written: str) -> Any:
        """Neurons that were written down, all on."""
        return _ticks(parse_neurons(written))

    def refresh(self, spec: str, pixels: Any, layer: int, *chosen: Any) -> Any:
        """Maps, words, Python and JSON of what is chosen."""
        if pixels is None:
            return gr.skip()
        settings = self._settings(spec, pixels, *chosen)
        look = self.explorer.look(spec, pixels, settings)
        return (
            look,
            *self.show(look, layer),
            settings.snippet(spec.strip()),
            settings.intervention().to_json(),
        )

    def _settings(
        self, spec: str, pixels: Any, kind: Any, ticked: list[str], n_registers: int,
        semantics: Any, fill: Any, canvas: dict[str, Any] | None,
    ) -> Settings:  # fmt: skip
        drawing = drawing_of((canvas or {}).get("layers") or [])
        grid = self.explorer.grid(spec, pixels)
        return Settings(
            kind=kind,
            neurons=parse_neurons("; ".join(ticked)),
            n_registers=int(n_registers),
            semantics=semantics,
            fill=fill,
            patches=() if drawing is None else drawn_patches(drawing, grid),
        )

    def show(self, look: Look | None, layer: int) -> Any:
        """Maps and words of one layer."""
        if look is None:
            return gr.skip()
        layer = min(int(layer), look.n_layers - 1)
        return (*coloured(look.norms(layer)), *coloured(look.attention(layer)), look.words(layer))


def _ticks(neurons: NeuronSet) -> Any:
    """One tick a neuron, all on; a tick is written as `parse_neurons` reads it."""
    names = [f"{layer}: {neuron}" for layer, neuron in neurons]
    return gr.CheckboxGroup(choices=names, value=names)
