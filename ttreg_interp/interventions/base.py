"""Interventions: values that say what to do to a forward pass, and how they compose.

Laws (tests/interventions): `(a + b)` is a, then b; `a + Empty() == a`; disjoint interventions
commute; an empty one is bit-identical; nothing is edited in place; leaving a context restores the
model, also after an exception.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence as Items
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ttreg_interp.errors import ArtifactError, InterventionError
from ttreg_interp.hooked.intervened import NamedHook

SCHEMA = "intervention/1"


class Intervention(ABC):
    """One thing to do to a forward pass; a frozen dataclass with plain fields.

    A concrete kind says its hooks in `_hooks` and itself in words in `describe`.
    """

    kinds: ClassVar[dict[str, type["Intervention"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Intervention.kinds[cls.__name__] = cls

    @property
    def n_added_tokens(self) -> int:
        """Rows that it adds to the token axis."""
        return 0

    @abstractmethod
    def describe(self) -> str:
        """What it does, in words."""

    @abstractmethod
    def _hooks(self, model: Any, first_row: int) -> list[NamedHook]:
        """Its hooks; rows that it adds stand at `first_row` of the token axis."""

    def fwd_hooks(self, model: Any) -> list[NamedHook]:
        """Plain TransformerLens hooks: `(hook name, function(activation, hook))`.

        Args:
            model: a hooked model; rows added by what it already runs under are counted.

        Raises:
            InterventionError: it does not fit the model (layer, neuron, head, grid).
        """
        return self._hooks(model, model.layout().n_prefix + model.n_added_tokens)

    def check_compatible(self, others: Items[Any]) -> None:  # noqa: B027  (most kinds have none)
        """Refuse to run together with `others`; only kinds with a conflict override this.

        Raises:
            InterventionError: names the conflict.
        """

    def __add__(self, other: "Intervention") -> "Intervention":
        """This one, then `other`."""
        if not isinstance(other, Intervention):
            return NotImplemented
        parts = (*_parts(self), *_parts(other))
        if len(parts) == 1:
            return parts[0]
        return Sequence(parts) if parts else Empty()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.describe()}>"

    def to_dict(self) -> dict[str, Any]:
        """Kind and fields, as JSON knows them."""
        body = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]
        return {"kind": type(self).__name__, **body}

    def to_json(self) -> str:
        """One JSON document that `from_json` reads back to an equal value."""
        return json.dumps({"schema": SCHEMA, **self.to_dict()}, indent=1)

    @staticmethod
    def from_dict(body: dict[str, Any]) -> "Intervention":
        """Read what `to_dict` wrote.

        Raises:
            ArtifactError: an unknown kind, or fields that the kind does not have.
        """
        rest = {key: value for key, value in body.items() if key not in ("kind", "schema")}
        kind = Intervention.kinds.get(body.get("kind", ""))
        if kind is None:
            raise ArtifactError(
                f"Unknown kind of intervention {body.get('kind')!r}; known: {sorted(Intervention.kinds)}."
            )
        try:
            return kind._from_fields(rest)
        except TypeError as error:
            allowed = [field.name for field in fields(kind)]  # type: ignore[arg-type]
            raise ArtifactError(f"{kind.__name__}: {error}. Its fields are {allowed}.") from None

    @classmethod
    def _from_fields(cls, body: dict[str, Any]) -> "Intervention":
        return cls(**body)

    @staticmethod
    def from_json(text: str) -> "Intervention":
        """Read what `to_json` wrote.

        Raises:
            ArtifactError: no JSON, another schema, an unknown kind or field.
        """
        try:
            body = json.loads(text)
        except json.JSONDecodeError as error:
            raise ArtifactError(f"This is not JSON: {error}.") from None
        if not isinstance(body, dict) or body.get("schema") != SCHEMA:
            found = body.get("schema") if isinstance(body, dict) else type(body).__name__
            raise ArtifactError(f"Expected an intervention of schema {SCHEMA!r}, found {found!r}.")
        return Intervention.from_dict(body)


def _plain(value: Any) -> Any:
    """Field values as JSON knows them: nested values by their own `to_dict`."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


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

    def _hooks(self, model: Any, first_row: int) -> list[NamedHook]:
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
        for i, part in enumerate(self.parts):
            if not isinstance(part, Intervention):
                raise InterventionError(f"Part {i} of a Sequence is {part!r}, not an Intervention.")
            part.check_compatible(self.parts[:i])

    @property
    def n_added_tokens(self) -> int:
        """Rows that its parts add together."""
        return sum(part.n_added_tokens for part in self.parts)

    def describe(self) -> str:
        """What it does, in words."""
        return ", then ".join(part.describe() for part in self.parts)

    def _hooks(self, model: Any, first_row: int) -> list[NamedHook]:
        hooks = []
        for part in self.parts:
            hooks += part._hooks(model, first_row)
            first_row += part.n_added_tokens
        return hooks

    def check_compatible(self, others: Items[Any]) -> None:
        """Each part must be compatible with `others`."""
        for part in self.parts:
            part.check_compatible(others)

    @classmethod
    def _from_fields(cls, body: dict[str, Any]) -> Intervention:
        return cls(tuple(Intervention.from_dict(part) for part in body.pop("parts")), **body)


def flattened(others: Items[Any]) -> list[Any]:
    """`others` with every Sequence replaced by its parts."""
    return [
        part
        for other in others
        for part in (_parts(other) if isinstance(other, Intervention) else (other,))
    ]
