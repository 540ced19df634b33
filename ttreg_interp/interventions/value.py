"""Plain values with a kind: frozen, comparable, said in words, written as JSON and read back."""

import base64
import binascii
import json
import os
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from ttreg_interp.errors import ArtifactError, InterventionError

SCHEMA = "intervention/1"
INLINE_LIMIT = 64
"""Tensors of at most so many entries are written as nested lists, larger ones as safetensors."""


Kind = TypeVar("Kind", bound="Value")


class Value(ABC):
    """What interventions and selectors share; every concrete one is a frozen dataclass.

    Lists given for a field become tuples and tensors become TensorValues, so that equality and
    hashing hold.
    """

    kinds: ClassVar[dict[str, type["Value"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Value.kinds[cls.__name__] = cls

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, field.name, _frozen(getattr(self, field.name)))

    @abstractmethod
    def describe(self) -> str:
        """What it is or does, in words."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.describe()}>"

    def to_dict(self) -> dict[str, Any]:
        """Kind and fields, as JSON knows them."""
        body = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type]
        return {"kind": type(self).__name__, **body}

    def to_json(self) -> str:
        """One JSON document that `from_json` reads back to an equal value."""
        return json.dumps({"schema": SCHEMA, **self.to_dict()}, indent=1, allow_nan=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json` to a file, in one step: a reader sees the old file or the new one."""
        target = Path(path)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=target.parent, prefix=f".{target.name}", delete=False
        ) as draft:
            draft.write(self.to_json())
        Path(draft.name).replace(target)

    @classmethod
    def from_dict(cls: type[Kind], body: dict[str, Any]) -> Kind:
        """Read what `to_dict` wrote.

        Raises:
            ArtifactError: an unknown kind, or fields that the kind does not have.
        """
        kind = Value.kinds.get(body.get("kind", ""))
        if kind is None or not issubclass(kind, cls):
            known = sorted(name for name, kind in Value.kinds.items() if issubclass(kind, cls))
            raise ArtifactError(
                f"Unknown kind of {cls.__name__.lower()} {body.get('kind')!r}; known: {known}."
            )
        rest = {key: _read(item) for key, item in body.items() if key not in ("kind", "schema")}
        try:
            return kind(**rest)
        except TypeError as error:
            allowed = [field.name for field in fields(kind)]  # type: ignore[arg-type]
            raise ArtifactError(f"{kind.__name__}: {error}. Its fields are {allowed}.") from None

    @classmethod
    def from_json(cls: type[Kind], text: str) -> Kind:
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
        return cls.from_dict(body)

    @classmethod
    def load(cls: type[Kind], path: str | os.PathLike[str]) -> Kind:
        """Read what `save` wrote.

        Raises:
            ArtifactError: no such file, or one that `from_json` refuses.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ArtifactError(f"Cannot read {path}: {error.strerror}.") from None
        return cls.from_json(text)


@dataclass(frozen=True, eq=False)
class TensorValue:
    """A tensor as a field: equal where dtype, shape and every entry are, short to print.

    The tensor is held as it is, so that a gradient reaches one that requires it.

    Raises:
        InterventionError: NaN or inf.

    Example:
        >>> TensorValue(torch.zeros(2, 3)) == TensorValue(torch.zeros(2, 3))
        True
        >>> TensorValue(torch.zeros(2, 3))
        float32[2, 3]
    """

    tensor: Shaped[Tensor, "..."]
    """The tensor."""

    def __post_init__(self) -> None:
        bad = int((~self.tensor.detach().isfinite()).sum())
        if bad:
            raise InterventionError(
                f"A stored tensor {self} holds {bad} NaN or inf; store finite values. (To switch a key "
                "off, hide it with KnockoutAttention or give an AttentionBias few copies.)"
            )

    @classmethod
    def of(cls, value: Any) -> "TensorValue":
        """A TensorValue from a tensor, nested numbers, or what `to_dict` wrote."""
        return value if isinstance(value, TensorValue) else cls(torch.as_tensor(value))

    def like(self, activation: Tensor) -> Tensor:
        """The tensor with dtype and device of `activation`."""
        return self.tensor.to(activation)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorValue):
            return NotImplemented
        mine, theirs = self.tensor.detach().cpu(), other.tensor.detach().cpu()
        return mine.dtype == theirs.dtype and torch.equal(mine, theirs)

    def __hash__(self) -> int:
        return hash((self.tensor.dtype, tuple(self.tensor.shape)))

    def __repr__(self) -> str:
        dtype = str(self.tensor.dtype).removeprefix("torch.")
        return f"{dtype}{list(self.tensor.shape)}"

    def to_dict(self) -> dict[str, Any]:
        """Nested lists for small tensors, else base64 of a safetensors file."""
        tensor = self.tensor.detach().cpu().contiguous()
        if 0 < tensor.numel() <= INLINE_LIMIT:  # lists forget the shape of nothing
            return {"tensor": tensor.tolist(), "dtype": str(tensor.dtype).removeprefix("torch.")}
        return {"safetensors": base64.b64encode(tensors_to_bytes({"tensor": tensor})).decode()}


Stored = TensorValue | Any
"""A field that holds a TensorValue and takes whatever `TensorValue.of` takes."""


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    return TensorValue(value) if isinstance(value, Tensor) else value


def _plain(value: Any) -> Any:
    """Field values as JSON knows them: nested values by their own `to_dict`."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return (
        value if value is None or isinstance(value, bool | int | float | str) else value.to_dict()
    )


def _read(value: Any) -> Any:
    """The inverse of `_plain`; a NeuronSet's mapping is left to the field that takes it."""
    if isinstance(value, list):
        return tuple(_read(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "kind" in value:
        return Value.from_dict(value)
    if "safetensors" in value or "tensor" in value:
        return TensorValue(_read_tensor(value))
    return value


def _read_tensor(body: dict[str, Any]) -> Tensor:
    try:
        if "safetensors" in body:
            return tensors_from_bytes(base64.b64decode(body["safetensors"], validate=True))[
                "tensor"
            ]
        return torch.tensor(body["tensor"], dtype=getattr(torch, body["dtype"]))
    except (binascii.Error, SafetensorError, KeyError, AttributeError, TypeError, ValueError) as e:
        raise ArtifactError(
            f"A stored tensor cannot be read ({e}): the file is damaged. Write it again."
        ) from None


def check_choice(field: str, value: Any, choices: Any) -> None:
    """Refuse a word that a field does not know.

    Raises:
        InterventionError: names those that it does.
    """
    if value not in get_args(choices):
        raise InterventionError(
            f"{field}={value!r} is unknown; it is one of {', '.join(map(repr, get_args(choices)))}."
        )
