"""Arms that depend on where a text stands in each image."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from ttreg_interp.interventions import Empty, Intervention, Mask, MoveNeurons, NeuronSet

Pixels = Float[Tensor, "batch channel height width"]
Areas = Bool[Tensor, "batch grid_height grid_width"]


class ByArea(ABC):
    """An arm that depends on where something stands in each image, such as an attack's text."""

    @abstractmethod
    def pixels(self, pixels: Pixels, areas: Areas) -> Pixels:
        """What enters the model; `areas` mark patches."""

    @abstractmethod
    def intervention(self, areas: Areas) -> Intervention:
        """What is done to the forward pass of that batch."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """For JSON."""


@dataclass(frozen=True)
class NeuronsOnText(ByArea):
    """The strongest value of each neuron goes to the patches of the text, zero to all others."""

    neurons: NeuronSet
    """Register neurons, or random ones as a control."""

    def pixels(self, pixels: Pixels, areas: Areas) -> Pixels:
        """Unchanged."""
        return pixels

    def intervention(self, areas: Areas) -> Intervention:
        """Outliers moved onto the text."""
        return MoveNeurons(self.neurons, to=Mask(areas))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"kind": type(self).__name__, "neurons": self.neurons.to_dict()}


@dataclass(frozen=True)
class TextErased(ByArea):
    """The pixels of the text's patches become their mean (the control that edits the image)."""

    def pixels(self, pixels: Pixels, areas: Areas) -> Pixels:
        """With the text filled."""
        size = (pixels.shape[2], pixels.shape[3])
        inside = interpolate(areas[:, None].to(pixels.dtype), size, mode="nearest-exact")
        total = inside.sum(dim=(2, 3), keepdim=True).clamp(min=1)
        mean = (pixels * inside).sum(dim=(2, 3), keepdim=True) / total
        return torch.where(inside > 0, mean, pixels)

    def intervention(self, areas: Areas) -> Intervention:
        """None."""
        return Empty()

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"kind": type(self).__name__}
