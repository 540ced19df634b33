"""Interventions on neurons: what stands in the chosen channels of `blocks.{l}.mlp.hook_post`."""

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import InterventionError
from ttreg_interp.hooked.intervened import NamedHook
from ttreg_interp.interventions.base import Intervention
from ttreg_interp.interventions.neuron_set import NeuronSet


@dataclass(frozen=True, repr=False)
class NeuronEdit(Intervention):
    """An edit of chosen neurons on all tokens; a kind says the new values."""

    neurons: NeuronSet
    """The neurons."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "neurons", NeuronSet.of(self.neurons))
        if not len(self.neurons):
            raise InterventionError(
                f"{type(self).__name__} without neurons: use Empty() for the plain model."
            )

    @abstractmethod
    def _edit(
        self, values: Float[Tensor, "batch token selected"], layer: int
    ) -> Float[Tensor, "batch token selected"]:
        """New values of the neurons of one layer, in the order of the set."""

    def _hooks(self, model: Any, first_row: int) -> list[NamedHook]:
        self.neurons.check(model.cfg.n_layers, model.cfg.d_mlp, model.cfg.model_name)
        return [
            (f"blocks.{layer}.mlp.hook_post", partial(self._write, layer, torch.tensor(neurons)))
            for layer, neurons in self.neurons.layers
        ]

    def _write(self, layer: int, index: Tensor, post: Tensor, hook: Any) -> Tensor:
        index = index.to(post.device)
        return post.index_copy(2, index, self._edit(post[:, :, index], layer))


@dataclass(frozen=True, repr=False)
class ZeroNeurons(NeuronEdit):
    """Zero ablation: a[t, n] = 0 for every token t, [CLS] and registers included.

    Zeros are off the model's distribution; compare with a mean, resampled or shuffled ablation
    before calling a neuron important (arXiv 2604.14433).

    Example:
        >>> ZeroNeurons({5: [599]})
        <ZeroNeurons: zero in 1 neuron; layer 5: 599>
    """

    def describe(self) -> str:
        """What it does, in words."""
        return f"zero in {self.neurons.describe()}"

    def _edit(self, values: Tensor, layer: int) -> Tensor:
        return torch.zeros_like(values)
