"""A set of neurons by layer: what every intervention on neurons is told."""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from ttreg_interp.errors import InterventionError


@runtime_checkable
class HasNeurons(Protocol):
    """Anything that stands for a set of neurons, such as a RegisterNeurons artefact."""

    @property
    def neurons(self) -> "NeuronSet":
        """The neurons."""
        ...


@dataclass(frozen=True)
class NeuronSet:
    """Neurons by layer, sorted and without duplicates.

    Example:
        >>> NeuronSet.of({5: [599, 61], 3: [7]})
        NeuronSet(3 neurons; layer 3: 7; layer 5: 61, 599)
    """

    layers: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """Pairs of a layer and its neurons."""

    @classmethod
    def of(cls, neurons: Any) -> "NeuronSet":
        """A NeuronSet from a mapping of layers to neurons, pairs (layer, neuron), or an artefact.

        Raises:
            InterventionError: none of these, or a negative or non-integer index.
        """
        if isinstance(neurons, NeuronSet):
            return neurons
        if isinstance(neurons, HasNeurons):
            return neurons.neurons
        try:
            return cls(grouped(neurons))
        except (TypeError, ValueError):
            raise InterventionError(
                f"Neurons are a mapping {{layer: [neuron, ...]}}, pairs (layer, neuron), or a "
                f"RegisterNeurons; found {neurons!r}. Indices count from 0."
            ) from None

    def __len__(self) -> int:
        return sum(len(neurons) for _, neurons in self.layers)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Pairs (layer, neuron), in order."""
        return ((layer, neuron) for layer, neurons in self.layers for neuron in neurons)

    def __or__(self, other: "NeuronSet") -> "NeuronSet":
        return NeuronSet.of([*self, *other])

    def __and__(self, other: "NeuronSet") -> "NeuronSet":
        return NeuronSet.of(sorted(set(self) & set(other)))

    def __repr__(self) -> str:
        return f"NeuronSet({self.describe()})"

    def by_layer(self) -> dict[int, tuple[int, ...]]:
        """Neurons of every layer that has some."""
        return dict(self.layers)

    def columns(self, layer: int) -> slice:
        """Where the neurons of `layer` stand in the order of the whole set."""
        first = sum(len(neurons) for other, neurons in self.layers if other < layer)
        return slice(first, first + len(self.by_layer()[layer]))

    def describe(self) -> str:
        """Count and indices, in words."""
        listed = "; ".join(f"layer {layer}: {', '.join(map(str, ns))}" for layer, ns in self.layers)
        count = f"{len(self)} neuron{'s' * (len(self) != 1)}"
        return (
            f"{count}; {listed}"
            if len(self) <= 12
            else f"{count} in layers {[layer for layer, _ in self.layers]}"
        )

    def to_dict(self) -> dict[str, list[int]]:
        """`{"layer": [neuron, ...]}`, as JSON wants it."""
        return {str(layer): list(neurons) for layer, neurons in self.layers}

    def check(self, n_layers: int, d_mlp: int, model_name: str) -> None:
        """Refuse neurons that a model does not have.

        Raises:
            InterventionError: names the first layer or neuron out of range.
        """
        for layer, neuron in self:
            if layer >= n_layers or neuron >= d_mlp:
                raise InterventionError(
                    f"Layer {layer}, neuron {neuron} is not in {model_name}: it has layers 0 to "
                    f"{n_layers - 1} with neurons 0 to {d_mlp - 1}. Is the list for another model?"
                )

    def hook_names(self, model: Any) -> list[str]:
        """Where the neurons of each layer stand in a model, layer by layer.

        Raises:
            InterventionError: the model does not have them.
        """
        cfg = model.cfg
        self.check(cfg.n_layers, cfg.d_mlp, cfg.model_name)
        return [f"blocks.{layer}.mlp.hook_post" for layer, _ in self.layers]

    def matched_random(self, seed: int, d_mlp: int) -> "NeuronSet":
        """As many random neurons in every layer, none of them in this set.

        Args:
            seed: of the draw.
            d_mlp: neurons of a layer.

        Raises:
            InterventionError: a layer has too few other neurons.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn: dict[int, list[int]] = {}
        for layer, neurons in self.layers:
            others = [
                n for n in torch.randperm(d_mlp, generator=generator).tolist() if n not in neurons
            ]
            if len(others) < len(neurons):
                raise InterventionError(
                    f"Layer {layer} has {d_mlp} neurons, of which {len(neurons)} are in the set: "
                    f"{len(others)} are too few for a matched random control."
                )
            drawn[layer] = others[: len(neurons)]
        return NeuronSet.of(drawn)


Neurons = NeuronSet | Any
"""A field that holds a NeuronSet and takes whatever `NeuronSet.of` takes."""


def grouped(indices: Any) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Indices by layer, sorted, from a mapping {layer: [index, ...]} or pairs (layer, index).

    Raises:
        TypeError, ValueError: neither, or an index that is no integer >= 0.
    """
    by_layer: dict[int, set[int]] = {}
    for layer, index in _pairs(indices):
        by_layer.setdefault(_index(layer), set()).add(_index(index))
    return tuple((layer, tuple(sorted(by_layer[layer]))) for layer in sorted(by_layer))


def _pairs(neurons: Any) -> Items[tuple[Any, Any]]:
    if isinstance(neurons, Mapping):
        return [(layer, neuron) for layer, items in neurons.items() for neuron in items]
    return [(layer, neuron) for layer, neuron in neurons]


def _index(value: Any) -> int:
    index = int(value)
    if index < 0 or (not isinstance(value, str) and index != value) or isinstance(value, bool):
        raise ValueError(value)
    return index
