"""What the page asks for, one method an event: values in, values out, no widgets."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ttreg_interp.app.look import Look, look, seen_picture
from ttreg_interp.app.settings import Settings
from ttreg_interp.app.upload import read_upload
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

    def prepare(self, spec: str, picture: Image.Image) -> tuple[Pixels, Image.Image]:
        """Pixels for the model, and the picture as it sees it."""
        model = self.model(spec)
        assert model.preprocess is not None
        pixels = model.preprocess(picture)[None]
        return pixels, seen_picture(model, pixels)

    def look(self, spec: str, pixels: Pixels, settings: Settings) -> Look:
        """One image, intact and under the settings.

        Raises:
            InterventionError: the settings do not fit together, or not the model.
        """
        intervention, model = settings.intervention(), self.model(spec)
        with self._turn:  # an intervention is in force for everybody who runs the model
            return look(model, pixels, intervention)

    def grid(self, spec: str, pixels: Pixels) -> tuple[int, int]:
        """Height and width in patches."""
        layout = self.model(spec).layout(pixels.shape)
        return layout.height, layout.width


def first_picture() -> Image.Image | None:
    """A photograph to begin with, where scikit-image has one."""
    from ttreg_interp.errors import DataError
    from ttreg_interp.testbed import photographs

    try:
        return photographs()["astronaut"]
    except DataError:
        return None


def opened_file(path: str | None) -> Image.Image | None:
    """The uploaded picture; None where there is none."""
    return None if path is None else read_upload(Path(path))


def _load(spec: str) -> HookedViT:
    from ttreg_interp.hooked import load

    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded: Any = load(spec, device=device)
    return loaded
