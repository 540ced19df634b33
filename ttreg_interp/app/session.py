"""What the page asks for, one method an event: values in, values out, no widgets."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.app.export import State
from ttreg_interp.app.look import MEAN_PATCH, Look, View, look
from ttreg_interp.app.ranking import rank_neurons
from ttreg_interp.app.settings import Settings
from ttreg_interp.app.upload import Picture, read_upload
from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.interventions import NeuronSet

Pixels = Float[Tensor, "1 channel height width"]


@dataclass
class Explorer:
    """Models that are open, and what is known of them; one for all visitors of a page."""

    spec: str = "testbed:planted"
    """The model at the start."""
    neurons: NeuronSet | None = None
    """Its neurons; None: those planted in an embedded model, else none."""
    may_load: bool = True
    """Whether visitors may name other models."""
    load: Callable[[str], HookedViT] | None = None
    """Spec to model; None: `ttreg_interp.load`."""
    _open: dict[str, HookedViT] = field(default_factory=dict)
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def model(self, spec: str) -> HookedViT:
        """The model of a spec; the last one stays open.

        Raises:
            UnsupportedModelError: another model than that of the start where only it may be used.
            TTRegError: as `load`.
        """
        spec = spec.strip()
        if not self.may_load and spec != self.spec:
            raise UnsupportedModelError(
                f"This page shows {self.spec} only: it is open to other machines, which may not have "
                "models loaded here. Start `ttreg explore --model` with the model to show."
            )
        with self._turn:
            if spec not in self._open:
                model = (self.load or _load)(spec)
                if model.preprocess is None:
                    raise UnsupportedModelError(
                        f"{spec} does not say how its images are prepared, so none can be shown."
                    )
                self._open.clear()
                self._open[spec] = model
            return self._open[spec]

    def known_neurons(self, spec: str) -> NeuronSet:
        """Register neurons to begin with."""
        if spec == self.spec and self.neurons is not None:
            return self.neurons
        if not spec.startswith("testbed:planted"):
            return NeuronSet()
        from ttreg_interp.testbed import planted_vit

        layout, size, seed = [*spec.split("/")[1:], "", "", ""][:3]
        options = {"layout": layout or "timm", "size": size or "tiny", "seed": int(seed or 0)}
        return NeuronSet.of(planted_vit(**options).truth)

    def prepare(self, spec: str, picture: Picture) -> Pixels:
        """Pixels for the model."""
        preprocess = self.model(spec).preprocess
        assert preprocess is not None
        return preprocess(picture.image)[None]

    def reader(self, spec: str) -> str:
        """The query to begin with: [CLS], or the mean patch in a model without it."""
        return "CLS" if self.model(spec).layout().n_cls else MEAN_PATCH

    def look(self, spec: str, pixels: Pixels, settings: Settings, view: View) -> Look:
        """One image, intact and under the settings.

        Raises:
            InterventionError: the settings do not fit together, or not the model.
        """
        intervention, model = settings.intervention(), self.model(spec)
        with self._turn:  # an intervention is in force for everybody who runs the model
            return look(model, pixels, intervention, view)

    def rank(self, spec: str, pixels: Pixels) -> list[tuple[int, int, float]]:
        """The neurons that make this image's outliers: layer, neuron, score.

        Raises:
            DataError: it has none.
        """
        model = self.model(spec)
        with self._turn:
            return rank_neurons(model, pixels)

    def state(
        self, spec: str, picture: Picture, settings: Settings, view: View, seen: Look
    ) -> State:
        """The page's state, to take along."""
        device = str(self.model(spec).cfg.device)
        return State(spec, device, picture, settings, view, seen.numbers(view))

    def grid(self, spec: str, pixels: Pixels) -> tuple[int, int]:
        """Height and width in patches."""
        layout = self.model(spec).layout(pixels.shape)
        return layout.height, layout.width


def first_picture() -> Picture | None:
    """A photograph to begin with, where scikit-image has one."""
    from ttreg_interp.errors import DataError
    from ttreg_interp.testbed import photographs

    try:
        return Picture(photographs()["astronaut"], "astronaut", embedded=True)
    except DataError:
        return None


def opened_file(path: str | None) -> Picture | None:
    """The uploaded picture; None where there is none."""
    return None if path is None else Picture(read_upload(Path(path)), Path(path).name)


def _load(spec: str) -> HookedViT:
    from ttreg_interp.hooked import load

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded: Any = load(spec, device=device)
    return loaded
