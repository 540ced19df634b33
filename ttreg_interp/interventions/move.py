"""Moving activations: the strongest value of a neuron, put on the tokens of one's choice."""

from dataclasses import dataclass
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
from ttreg_interp.interventions.registers import Search, searched_rows
from ttreg_interp.interventions.selector import Bound, Tokens
from ttreg_interp.interventions.selectors import select


@dataclass(frozen=True, repr=False)
class MoveNeurons(Intervention):
    """Moves outliers: the strongest value of each neuron goes to the chosen tokens.

        a[t, n] = scale * max_s a[s, n] for chosen t,   a[t, n] = fill for every other token

    With `to=Shape('heart')` a [CLS] attention map shows a heart; with patches over a
    text in the image, the text is masked. `ExtraTokens() + MoveNeurons(n, "test_time_registers")` is
    `TestTimeRegister(n)`.

    Raises:
        InterventionError: no neurons; a neuron or a target that the model does not have; neurons that
            another part of the composition moves or overwrites.

    Source: arXiv 2506.08010, section 3.2 and Fig. 1, 4, 15.

    Example:
        >>> MoveNeurons({5: [599]}, to=((0, 0), (0, 1)))
        <MoveNeurons: 1 neuron; layer 5: 599 moved to 2 patches>
    """

    neurons: Neurons
    """The register neurons."""
    to: Tokens
    """Where to: a selector, a part's name, rows, (row, column) pairs, or a mask; also per image."""
    fill: Literal["zero", "mean", "same"] = "zero"
    """What the other tokens get: zero, their mean over patches, or what they had."""
    scale: float = 1.0
    """Factor on the moved value."""
    search: Search | None = None
    """Which tokens the maximum runs over: all, patches only, or the first token of a text. None: all
    of an image, 'bos' of a text."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "neurons", NeuronSet.of(self.neurons))
        object.__setattr__(self, "to", select(self.to))
        if not len(self.neurons):
            raise InterventionError("MoveNeurons without neurons: use Empty() for the plain model.")

    @property
    def looks_ahead(self) -> bool:
        """See Intervention."""
        return self.fill == "mean" or self.search in ("all", "patches")

    @property
    def moved_neurons(self) -> NeuronSet:
        """See Intervention."""
        return self.neurons

    def describe(self) -> str:
        """What it does, in words."""
        options = {"fill": "zero", "scale": 1.0, "search": None}
        changed = [f"{k}={getattr(self, k)}" for k, v in options.items() if getattr(self, k) != v]
        more = f" ({', '.join(changed)})" if changed else ""
        return f"{self.neurons.describe()} moved to {self.to.describe()}{more}"

    def _hooks(self, frame: Frame) -> list[NamedHook]:
        names = self.neurons.hook_names(frame.model)
        bound = self.to.bind(frame, names[0])
        edits = [
            partial(self._move, frame, torch.tensor(neurons), bound)
            for _, neurons in self.neurons.layers
        ]
        return [*bound.hooks, *zip(names, edits, strict=True)]

    def _move(
        self, frame: Frame, index: Tensor, bound: Bound, post: Tensor, hook: Any
    ) -> Float[Tensor, "batch token neuron"]:
        index = index.to(post.device)
        values = post[:, :, index]
        searched = values[:, searched_rows(self.search, frame, post.shape[1])]
        strongest = searched.amax(dim=1, keepdim=True) * self.scale
        others = {"zero": torch.zeros_like(strongest), "same": values}.get(self.fill)
        if others is None:
            patches = frame.layout(post.shape[1]).patches
            others = values[:, patches].mean(dim=1, keepdim=True)
        chosen = bound.rows(post.shape[1], post.device)[:, :, None]
        return post.index_copy(2, index, torch.where(chosen, strongest, others))


@dataclass(frozen=True, repr=False)
class CopyRegisterValuesTo(Intervention):
    """The control for MoveNeurons: other neurons receive the values of the register neurons.

        a[t, m] = a[t, n]  (to=None),   or   a[t, m] = max_s a[s, n] for chosen t, 0 elsewhere

    with m the neuron of `targets` that stands where n does in `neurons`, layer by layer. If outliers
    came from the size of an activation alone, they would appear; they do not, because the direction
    that the neuron writes decides.

    Raises:
        InterventionError: other numbers of targets and register neurons in a layer, or a neuron that is
            both; targets that another part of the composition moves.

    Source: arXiv 2506.08010, Fig. 24 and 29.

    Example:
        >>> CopyRegisterValuesTo({5: [599]}, {5: [7]}, to="test_time_registers")
        <CopyRegisterValuesTo: values of 1 neuron; layer 5: 599 copied to 1 neuron; layer 5: 7, strongest \
on test time registers>
    """

    neurons: Neurons
    """The register neurons, which stay as they are."""
    targets: Neurons
    """As many other neurons in every layer, e.g. `neurons.matched_random(...)`."""
    to: Tokens | None = None
    """Tokens that get the strongest value, all others zero; None: every token its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "neurons", NeuronSet.of(self.neurons))
        object.__setattr__(self, "targets", NeuronSet.of(self.targets))
        if self.to is not None:
            object.__setattr__(self, "to", select(self.to))
        counts = [
            {layer: len(neurons) for layer, neurons in chosen.layers}
            for chosen in (self.neurons, self.targets)
        ]
        if counts[0] != counts[1] or not counts[0] or len(self.neurons & self.targets):
            raise InterventionError(
                "CopyRegisterValuesTo needs as many other neurons in every layer as there are "
                f"register neurons: found {counts[0]} register neurons and {counts[1]} targets by "
                f"layer, {len(self.neurons & self.targets)} in both. Draw them with "
                "neurons.matched_random(seed, d_mlp)."
            )

    @property
    def looks_ahead(self) -> bool:
        """See Intervention."""
        return self.to is not None

    @property
    def overwritten_neurons(self) -> NeuronSet:
        """See Intervention."""
        return self.targets

    def describe(self) -> str:
        """What it does, in words."""
        to = "" if self.to is None else f", strongest on {self.to.describe()}"
        return f"values of {self.neurons.describe()} copied to {self.targets.describe()}{to}"

    def _hooks(self, frame: Frame) -> list[NamedHook]:
        names = (self.neurons | self.targets).hook_names(frame.model)
        bound = None if self.to is None else self.to.bind(frame, names[0])
        edits = [
            partial(self._copy, torch.tensor(neurons), torch.tensor(targets), bound)
            for (_, neurons), (_, targets) in zip(
                self.neurons.layers, self.targets.layers, strict=True
            )
        ]
        watching = [] if bound is None else bound.hooks
        return [*watching, *zip(names, edits, strict=True)]

    def _copy(
        self, neurons: Tensor, targets: Tensor, bound: Bound | None, post: Tensor, hook: Any
    ) -> Float[Tensor, "batch token neuron"]:
        values = post[:, :, neurons.to(post.device)]
        if bound is not None:
            chosen = bound.rows(post.shape[1], post.device)[:, :, None]
            values = torch.where(chosen, values.amax(dim=1, keepdim=True), 0)
        return post.index_copy(2, targets.to(post.device), values)
