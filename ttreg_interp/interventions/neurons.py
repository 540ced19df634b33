"""Interventions on neurons: what stands in the chosen channels of `blocks.{l}.mlp.hook_post`.

Zeros are off the model's distribution: zeroing trained registers cost 37 points where their mean,
noise or shuffled values cost about one (arXiv 2604.14433). Compare several kinds of ablation before
calling a neuron important.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import InterventionError
from ttreg_interp.hooked.intervened import NamedHook
from ttreg_interp.interventions.base import Intervention
from ttreg_interp.interventions.frame import Frame
from ttreg_interp.interventions.neuron_set import Neurons, NeuronSet
from ttreg_interp.interventions.selector import ALL_TOKENS, ChosenRows, Tokens
from ttreg_interp.interventions.selectors import select
from ttreg_interp.interventions.value import Stored, TensorValue

Activations = Float[Tensor, "batch token selected"]


@dataclass(frozen=True, repr=False)
class NeuronEdit(Intervention):
    """New values for chosen neurons on chosen tokens; a kind says which.

    Raises:
        InterventionError: no neurons; a layer, neuron or token that the model does not have.
    """

    neurons: Neurons
    """The neurons."""
    tokens: Tokens = field(default=ALL_TOKENS, kw_only=True)
    """Where they are edited."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "neurons", NeuronSet.of(self.neurons))
        object.__setattr__(self, "tokens", select(self.tokens))
        if not len(self.neurons):
            raise InterventionError(
                f"{type(self).__name__} without neurons: use Empty() for the plain model."
            )

    @abstractmethod
    def _edit(self, values: Activations, layer: int) -> Activations:
        """New values of the neurons of one layer, in the order of the set."""

    @abstractmethod
    def _words(self) -> str:
        """What the neurons get, in words."""

    def describe(self) -> str:
        """What it does, in words."""
        where = "" if self.tokens == ALL_TOKENS else f", on {self.tokens.describe()}"
        return f"{self._words()} {self.neurons.describe()}{where}"

    def _hooks(self, frame: Frame) -> list[NamedHook]:
        names = self.neurons.hook_names(frame.model)
        bound = self.tokens.bind(frame, names[0])
        edits = [
            partial(self._write, layer, torch.tensor(neurons), bound.rows)
            for layer, neurons in self.neurons.layers
        ]
        return [*bound.hooks, *zip(names, edits, strict=True)]

    def _write(
        self,
        layer: int,
        index: Tensor,
        rows: Callable[[int, torch.device], ChosenRows],
        post: Tensor,
        hook: Any,
    ) -> Float[Tensor, "batch token neuron"]:
        index = index.to(post.device)
        values = post[:, :, index]
        edited = self._edit(values, layer)
        if self.tokens != ALL_TOKENS:
            chosen = rows(post.shape[1], post.device)[:, :, None]
            edited = torch.where(chosen, edited, values)
        return post.index_copy(2, index, edited.to(post.dtype))


@dataclass(frozen=True, repr=False)
class Overwriting(NeuronEdit):
    """A NeuronEdit that keeps nothing of the old values.

    Raises:
        InterventionError: on all tokens, neurons that another part of the composition moves.
    """

    @property
    def overwritten_neurons(self) -> NeuronSet:
        """See Intervention."""
        return self.neurons if self.tokens == ALL_TOKENS else NeuronSet()


@dataclass(frozen=True, repr=False)
class ZeroNeurons(Overwriting):
    """Zero ablation: a[t, n] = 0 for every chosen token t; [CLS] and registers are tokens.

    Example:
        >>> ZeroNeurons({5: [599]})
        <ZeroNeurons: zero in 1 neuron; layer 5: 599>
    """

    def _words(self) -> str:
        return "zero in"

    def _edit(self, values: Activations, layer: int) -> Activations:
        return torch.zeros_like(values)


@dataclass(frozen=True, repr=False)
class MeanNeurons(Overwriting):
    """Mean ablation: a[t, n] = mean of n, over a data set or over the image's own tokens.

    Raises:
        InterventionError: another number of means than of neurons.

    Example:
        >>> MeanNeurons({5: [599, 61]}, means=[0.1, -0.2])
        <MeanNeurons: stored mean in 2 neurons; layer 5: 61, 599>
    """

    means: Stored | None = None
    """[selected]: one a neuron, in the order of the set (by layer, then index); `mean_neurons` computes
    them. None: the mean over all tokens of the same image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _store_columns(self, "means", self.means, 1)

    @property
    def looks_ahead(self) -> bool:
        """See Intervention."""
        return self.means is None

    def _words(self) -> str:
        return "the image's own mean in" if self.means is None else "stored mean in"

    def _edit(self, values: Activations, layer: int) -> Activations:
        if self.means is None:
            return values.mean(dim=1, keepdim=True).expand_as(values)
        return self.means.like(values)[self.neurons.columns(layer)].expand_as(values)


@dataclass(frozen=True, repr=False)
class ResampleNeurons(Overwriting):
    """Resample ablation: every token takes the activations of a stored token, drawn at random.

    a[t, n] = samples[s(t), n]; the draw s is by token only, so that a token gets activations that
    occurred together, and an image gets the same whatever batch it is in.

    Raises:
        InterventionError: samples that are not [sample, selected].

    Example:
        >>> ResampleNeurons({5: [599]}, samples=[[0.1], [0.3]], seed=0)
        <ResampleNeurons: one of 2 stored tokens (seed 0) in 1 neuron; layer 5: 599>
    """

    samples: Stored
    """[sample, selected]: activations of tokens of other images, neurons in the order of the set;
    `resample_neurons` draws them."""
    seed: int = 0
    """Of the draw."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _store_columns(self, "samples", self.samples, 2)

    def _words(self) -> str:
        return f"one of {len(self.samples.tensor)} stored tokens (seed {self.seed}) in"

    def _edit(self, values: Activations, layer: int) -> Activations:
        generator = torch.Generator().manual_seed(self.seed)
        n_samples = len(self.samples.tensor)
        drawn = torch.randint(n_samples, (values.shape[1],), generator=generator)
        stored = self.samples.like(values)[:, self.neurons.columns(layer)]
        return stored[drawn.to(values.device)].expand_as(values)


@dataclass(frozen=True, repr=False)
class ShuffleNeurons(NeuronEdit):
    """Shuffle ablation: a[t, n] = a[p(t), n], p a permutation of the image's tokens.

    The values stay, their places do not. The permutation is the same for all neurons and images.

    Example:
        >>> ShuffleNeurons({5: [599]}, seed=3)
        <ShuffleNeurons: shuffled tokens (seed 3) in 1 neuron; layer 5: 599>
    """

    seed: int = 0
    """Of the permutation."""

    @property
    def looks_ahead(self) -> bool:
        """See Intervention."""
        return True

    def _words(self) -> str:
        return f"shuffled tokens (seed {self.seed}) in"

    def _edit(self, values: Activations, layer: int) -> Activations:
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(values.shape[1], generator=generator)
        return values[:, order.to(values.device)]


@dataclass(frozen=True, repr=False)
class NoiseNeurons(NeuronEdit):
    """Gaussian noise with the statistics that each neuron has over the image's tokens.

        replace: a[t, n] = mean_t a[t, n] + scale * std_t a[t, n] * e[t, n]
        add:     a[t, n] = a[t, n]        + scale * std_t a[t, n] * e[t, n]

    e is standard normal, drawn by layer, token and neuron, the same for every image.

    Source: arXiv 2506.08010, author response (random values of matched mean and variance).

    Example:
        >>> NoiseNeurons({5: [599]}, seed=1)
        <NoiseNeurons: noise of matched mean and deviation (seed 1) in 1 neuron; layer 5: 599>
    """

    scale: float = 1.0
    """Factor on the standard deviation."""
    mode: Literal["replace", "add"] = "replace"
    """Whether the noise takes the place of the values or joins them."""
    seed: int = 0
    """Of the noise."""

    @property
    def overwritten_neurons(self) -> NeuronSet:
        """See Intervention."""
        erases = self.mode == "replace" and self.tokens == ALL_TOKENS
        return self.neurons if erases else NeuronSet()

    @property
    def looks_ahead(self) -> bool:
        """See Intervention."""
        return True

    def _words(self) -> str:
        kind = "noise of matched mean and deviation" if self.mode == "replace" else "added noise"
        times = "" if self.scale == 1 else f", deviation x {self.scale:g}"
        return f"{kind} (seed {self.seed}{times}) in"

    def _edit(self, values: Activations, layer: int) -> Activations:
        generator = torch.Generator().manual_seed(self.seed * 10_007 + layer)
        noise = torch.randn(values.shape[1:], generator=generator).to(values)
        start = values.mean(dim=1, keepdim=True) if self.mode == "replace" else values
        return start + self.scale * deviation(values) * noise


@dataclass(frozen=True, repr=False)
class ScaleNeurons(NeuronEdit):
    """Scaling: a[t, n] = factor * a[t, n]; 0 is zero ablation, above 1 strengthens.

    Example:
        >>> ScaleNeurons({5: [599]}, 0.5)
        <ScaleNeurons: times 0.5 in 1 neuron; layer 5: 599>
    """

    factor: float
    """What the activations are multiplied with."""

    @property
    def overwritten_neurons(self) -> NeuronSet:
        """See Intervention."""
        return self.neurons if self.factor == 0 and self.tokens == ALL_TOKENS else NeuronSet()

    def _words(self) -> str:
        return f"times {self.factor:g} in"

    def _edit(self, values: Activations, layer: int) -> Activations:
        return values * self.factor


def deviation(values: Float[Tensor, "batch token d"]) -> Float[Tensor, "batch 1 d"]:
    """Standard deviation over tokens, with a finite gradient where all values are equal."""
    exact = values if values.dtype == torch.float64 else values.float()
    deviations = exact.var(dim=1, keepdim=True, correction=0).clamp_min(1e-12).sqrt()
    return deviations.to(values.dtype)


def _store_columns(edit: NeuronEdit, name: str, value: Any, n_axes: int) -> None:
    """Keep a stored tensor whose last axis is the neurons of the set.

    Raises:
        InterventionError: another number of axes or neurons.
    """
    if value is None:
        return
    stored = TensorValue.of(value)
    if stored.tensor.ndim != n_axes or stored.tensor.shape[-1] != len(edit.neurons):
        axes = ["sample", "selected"][-n_axes:]
        raise InterventionError(
            f"{name} of {type(edit).__name__} has shape {list(stored.tensor.shape)}, expected "
            f"[{', '.join(axes)}] with {len(edit.neurons)} selected neurons, by layer and index."
        )
    object.__setattr__(edit, name, stored)
