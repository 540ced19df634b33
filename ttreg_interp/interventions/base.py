"""Interventions: values that say what to do to a forward pass, and how they compose.

Laws (tests/interventions): `(a + b)` is a, then b; `a + Empty() == a`; disjoint interventions
commute; an empty one is bit-identical; nothing is edited in place; leaving a context restores the
model, also after an exception.
"""

from abc import abstractmethod
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import Any

from ttreg_interp.errors import InterventionError
from ttreg_interp.hooked.intervened import NamedHook
from ttreg_interp.interventions.frame import Frame
from ttreg_interp.interventions.neuron_set import NeuronSet
from ttreg_interp.interventions.value import Value


class Intervention(Value):
    """One thing to do to a forward pass; a frozen dataclass with plain fields.

    A concrete kind says its hooks in `_hooks` and itself in words in `describe`.
    """

    @property
    def n_added_tokens(self) -> int:
        """Rows that it adds to the token axis."""
        return 0

    @property
    def moved_neurons(self) -> NeuronSet:
        """Neurons whose strongest activation it looks for and moves to other tokens."""
        return NeuronSet()

    @property
    def overwritten_neurons(self) -> NeuronSet:
        """Neurons of which it leaves nothing on any token."""
        return NeuronSet()

    @property
    def looks_ahead(self) -> bool:
        """Whether what it gives a token depends on later tokens: no model of texts may run it."""
        return False

    @abstractmethod
    def _hooks(self, frame: Frame) -> list[NamedHook]:
        """Its hooks on the model of `frame`."""

    def fwd_hooks(self, model: Any) -> list[NamedHook]:
        """Plain TransformerLens hooks: `(hook name, function(activation, hook))`.

        They are for `model.run_with_hooks` and its kin. What already runs in a surrounding
        `model.intervened` does not learn of tokens that plain hooks add; nest `intervened` for that.

        Args:
            model: a hooked model; rows added by what it already runs under are counted.

        Raises:
            InterventionError: it does not fit the model (layer, neuron, head, grid).
        """
        frame = Frame.of(model, self.n_added_tokens)
        if frame.causal:
            _check_causal(self, frame.name)
        return self._hooks(frame)

    def check_compatible(self, others: Items[Any]) -> None:
        """Refuse to run after `others`.

        Raises:
            InterventionError: names the conflict.
        """
        for other in flattened(others):
            if isinstance(other, Intervention):
                _check_moved(other, self)
                _check_overwritten(other, self)
                _check_overwritten(self, other)

    def __add__(self, other: "Intervention") -> "Intervention":
        """This one, then `other`."""
        if not isinstance(other, Intervention):
            return NotImplemented
        parts = (*_parts(self), *_parts(other))
        if len(parts) == 1:
            return parts[0]
        return Sequence(parts) if parts else Empty()


def _check_causal(intervention: Intervention, model_name: str) -> None:
    for part in flattened((intervention,)):
        if part.looks_ahead:
            raise InterventionError(
                f"{part!r} reads all tokens of a text, so that tokens of {model_name} would learn of "
                "those after them. Give stored values (means=...), fill with zero, or search 'bos'."
            )


def _check_moved(first: Intervention, then: Intervention) -> None:
    shared = first.moved_neurons & then.moved_neurons
    if len(shared):
        raise InterventionError(
            f"{type(first).__name__} and {type(then).__name__} both move {shared.describe()}: the "
            "second would find what the first left, zeros. Apply one of them; for several "
            "registers, give one n_registers=2 or more."
        )


def _check_overwritten(mover: Intervention, eraser: Intervention) -> None:
    shared = mover.moved_neurons & eraser.overwritten_neurons
    if len(shared):
        raise InterventionError(
            f"{type(mover).__name__} moves {shared.describe()}, which {type(eraser).__name__} "
            "overwrites on all tokens: nothing would be moved. Leave these neurons to one of them, "
            f"or give {type(eraser).__name__} the tokens that it may touch."
        )


def _parts(intervention: Intervention) -> tuple[Intervention, ...]:
    if isinstance(intervention, Empty):
        return ()
    return intervention.parts if isinstance(intervention, Sequence) else (intervention,)


@dataclass(frozen=True, repr=False)
class Empty(Intervention):
    """Nothing: the forward pass is bit-identical to the plain model's."""

    def describe(self) -> str:
        """What it does, in words."""
        return "the model as it is"

    def _hooks(self, frame: Frame) -> list[NamedHook]:
        return []


@dataclass(frozen=True, repr=False)
class Sequence(Intervention):
    """Several interventions in order; what `+` returns.

    Raises:
        InterventionError: two of them conflict.
    """

    parts: tuple[Intervention, ...]
    """In the order in which they act."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for i, part in enumerate(self.parts):
            if not isinstance(part, Intervention):
                raise InterventionError(
                    f"Part {i} of a Sequence is {part!r}; only interventions compose."
                )
            part.check_compatible(self.parts[:i])
        object.__setattr__(self, "parts", tuple(flattened(self.parts)))

    @property
    def n_added_tokens(self) -> int:
        """Rows that its parts add together."""
        return sum(part.n_added_tokens for part in self.parts)

    def describe(self) -> str:
        """What it does, in words."""
        return ", then ".join(part.describe() for part in self.parts)

    def _hooks(self, frame: Frame) -> list[NamedHook]:
        hooks = []
        for part in self.parts:
            hooks += part._hooks(frame)
            frame = replace(frame, n_before=frame.n_before + part.n_added_tokens)
        return hooks

    def check_compatible(self, others: Items[Any]) -> None:
        """Each part must be compatible with `others`."""
        for part in self.parts:
            part.check_compatible(others)


def flattened(others: Items[Any]) -> list[Any]:
    """`others` with every Sequence replaced by its parts."""
    return [
        part
        for other in others
        for part in (_parts(other) if isinstance(other, Intervention) else (other,))
    ]
