"""What happens when a widget changes: widgets' values in, widgets' values out. Needs gradio."""

import html
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import gradio as gr

from ttreg_interp.app.look import Look, View
from ttreg_interp.app.session import Explorer, first_picture, opened_file
from ttreg_interp.app.settings import (
    Fill,
    Kind,
    Semantics,
    Settings,
    parse_neurons,
    written_neurons,
)
from ttreg_interp.app.stage import Patches, drawn_patches, patch_name, shown_maps, shown_picture
from ttreg_interp.app.upload import Picture
from ttreg_interp.errors import TTRegError

NO_NEURON = "none"
MEAN_HEAD = -1


@dataclass(frozen=True)
class Chosen:
    """The values of all widgets that say what is shown, in the order in which events get them."""

    spec: str
    """Of the model."""
    picture: Picture | None
    """The picture."""
    pixels: Any
    """The picture as the model reads it; None as long as there is none."""
    backdrop: dict[str, Any] | None
    """`shown_picture`."""
    kind: Kind
    """What to do."""
    ticked: list[str]
    """Neurons that are on, each as `parse_neurons` reads it."""
    n_registers: int
    """Added tokens."""
    semantics: Semantics
    """Of a register."""
    fill: Fill
    """Of a register."""
    drawn: Patches
    """Where outliers are moved to."""
    layer: int
    """On show."""
    head: int
    """On show; `MEAN_HEAD` for the mean."""
    query: str
    """On show."""
    neuron: str
    """On show, or `NO_NEURON`."""
    log: bool
    """Whether colours are logarithmic."""

    def settings(self) -> Settings:
        """What to do; nothing as long as nothing is drawn where outliers shall go."""
        return Settings(
            kind="nothing" if self.waits else self.kind,
            neurons=parse_neurons("; ".join(self.ticked)),
            n_registers=int(self.n_registers),
            semantics=self.semantics,
            fill=self.fill,
            patches=self.drawn,
        )

    @property
    def paints(self) -> bool:
        """Whether a pointer on the picture draws."""
        return self.kind == "move outliers"

    @property
    def waits(self) -> bool:
        """Whether outliers shall move, and it isn't said where to."""
        return self.paints and not self.drawn

    def view(self) -> View:
        """What is on show."""
        neuron = None
        if self.neuron and self.neuron != NO_NEURON:
            neuron = next(iter(parse_neurons(self.neuron)))
        head = None if self.head == MEAN_HEAD else int(self.head)
        return View(int(self.layer), head, self.query.strip(), neuron)


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


class Events:
    """The events of a page."""

    def __init__(self, explorer: Explorer):
        self.explorer = explorer

    @said
    def open_model(self, spec: str, picture: Picture | None) -> tuple[Any, ...]:
        """Neurons, layers, heads and queries of a model, and the picture as it sees it."""
        model, spec = self.explorer.model(spec), spec.strip()
        neurons, last = self.explorer.known_neurons(spec), model.cfg.n_layers - 1
        heads = [("mean over heads", MEAN_HEAD)]
        heads += [(f"head {head}", head) for head in range(model.cfg.n_heads)]
        return (
            written_neurons(neurons),
            *_offered([(*pair, None) for pair in neurons]),
            gr.Slider(maximum=last, value=last),
            gr.Dropdown(choices=heads, value=MEAN_HEAD),
            self.explorer.reader(spec),
            *self._prepared(spec, picture or first_picture()),
        )

    @said
    def take_image(self, spec: str, path: str | None) -> tuple[Any, ...]:
        """The uploaded picture."""
        return self._prepared(spec.strip(), opened_file(path))

    def _prepared(self, spec: str, picture: Picture | None) -> tuple[Any, ...]:
        """Picture, pixels, backdrop, and an empty drawing."""
        if picture is None:
            return None, None, None, ()
        pixels = self.explorer.prepare(spec, picture)
        return picture, pixels, shown_picture(self.explorer.model(spec), pixels), ()

    @said
    def name_neurons(self, written: str) -> tuple[Any, ...]:
        """Neurons that were written down, all on."""
        return _offered([(*pair, None) for pair in parse_neurons(written)])

    @said
    def rank(self, spec: str, pixels: Any, ticked: list[str]) -> tuple[Any, ...]:
        """The neurons that make this image's outliers, to tick; those that are on stay so."""
        if pixels is None:
            return gr.skip(), gr.skip()
        ranked = self.explorer.rank(spec.strip(), pixels)
        known = {(layer, neuron) for layer, neuron, _ in ranked}
        others = [(*pair, None) for pair in parse_neurons("; ".join(ticked)) if pair not in known]
        return _offered([*ranked, *others], ticked)

    @said
    def select(self, spec: str, pixels: Any, event: gr.EventData) -> Any:
        """The patch that was clicked, as the query."""
        return patch_name(event.patch, self.explorer.grid(spec.strip(), pixels))

    @said
    def draw(self, spec: str, pixels: Any, event: gr.EventData) -> Any:
        """The patches that are drawn on."""
        return drawn_patches(event.patches, self.explorer.grid(spec.strip(), pixels))

    def fitting(self, kind: Kind) -> tuple[Any, ...]:
        """Which settings mean something: added tokens, semantics, fill."""
        register = kind == "test-time register"
        adds = register or kind == "added token alone"
        return gr.update(visible=adds), gr.update(visible=register), gr.update(visible=register)

    @said
    def refresh(self, *values: Any) -> Any:
        """Run the model, show what is chosen."""
        chosen = Chosen(*values)
        if chosen.pixels is None:
            return gr.skip()
        spec, settings, view = chosen.spec.strip(), chosen.settings(), chosen.view()
        seen = self.explorer.look(spec, chosen.pixels, settings, view)
        return seen, *self._shown(seen, chosen)

    @said
    def show(self, seen: Look | None, *values: Any) -> Any:
        """Show another query or head of what was run."""
        return gr.skip() if seen is None else self._shown(seen, Chosen(*values))

    def _shown(self, seen: Look, chosen: Chosen) -> tuple[Any, ...]:
        """Stage, queries, words, Python, intervention and state as JSON."""
        view, settings = chosen.view(), chosen.settings()
        assert chosen.picture is not None and chosen.backdrop is not None
        spec, width = chosen.spec.strip(), chosen.backdrop["width"]
        state = self.explorer.state(spec, chosen.picture, settings, view, seen)
        stage = chosen.backdrop | shown_maps(seen, view)
        stage |= {"paint": chosen.paints, "log": chosen.log}
        stage["drawn"] = [row * width + column for row, column in chosen.drawn]
        note = "\n\n*Draw on the picture where outliers shall go.*" if chosen.waits else ""
        return (
            stage,
            gr.Dropdown(choices=[(name.replace("CLS", "[CLS]"), name) for name in seen.queries()]),
            words(state.numbers) + note,
            state.python(),
            settings.intervention().to_json(),
            state.to_json(),
        )


def words(numbers: dict[str, Any]) -> str:
    """A Markdown table of the numbers."""
    lines = ["| | intact | intervened |", "|---|---:|---:|"]
    for name, pair in numbers.items():
        shown = ["–" if value is None else _number(name, value) for value in pair]
        lines.append(f"| {name.replace('|', '&#124;')} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _number(name: str, value: float) -> str:
    if "attention" in name:
        return f"{value:.2%}"
    return f"{value:.3f}" if name.startswith("change") else f"{value:.2f}"


def _offered(ranked: list[Any], ticked: list[str] | None = None) -> tuple[Any, Any]:
    """Ticks and the list of maps for (layer, neuron, score or None); all on, or those given."""
    names = [f"{layer}: {neuron}" for layer, neuron, _ in ranked]
    labels = [
        name if score is None else f"{name} · {score:.3g}"
        for name, (_, _, score) in zip(names, ranked, strict=True)
    ]
    choices = list(zip(labels, names, strict=True))
    return (
        gr.CheckboxGroup(choices=choices, value=names if ticked is None else ticked),
        gr.Dropdown(choices=[NO_NEURON, *names], value=names[0] if names else NO_NEURON),
    )
