"""What a selector of tokens is, the parts of the layout by name, and combinations."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from ttreg_interp.errors import InterventionError
from ttreg_interp.hooked.intervened import NamedHook
from ttreg_interp.hooked.text_layout import TextLayout
from ttreg_interp.interventions.frame import Frame
from ttreg_interp.interventions.value import Value

PartName = Literal[
    "all", "cls", "trained_registers", "test_time_registers", "patches", "bos", "text"
]
ChosenRows = Bool[Tensor, "image token"]
"""Selected rows; `image` is 1 where all images share them."""


@dataclass(frozen=True)
class Bound:
    """A selector on the model of a run."""

    rows: Callable[[int, torch.device], ChosenRows]
    """Its rows, for a token axis of a given length."""
    hooks: list[NamedHook] = field(default_factory=list)
    """What it has to see of the run first."""


class Selector(Value):
    """Rows of the token axis."""

    @abstractmethod
    def bind(self, frame: Frame, at: str) -> Bound:
        """This selector on a model, for an edit at hook `at`.

        Raises:
            InterventionError: it does not fit the model, or is not known yet at `at`.
        """

    def __or__(self, other: "Selector") -> "Selector":
        return Either((self, other))

    def __and__(self, other: "Selector") -> "Selector":
        return Both((self, other))

    def __invert__(self) -> "Selector":
        return Not(self)


Tokens = Selector | Any
"""A field that holds a selector and takes whatever `selectors.select` takes."""


@dataclass(frozen=True, repr=False)
class Part(Selector):
    """A part of the layout by name: 'all', 'test_time_registers'; of images 'cls',
    'trained_registers', 'patches'; of texts 'bos' (the first token), 'text' (all others).

    Example:
        >>> Part("patches") | Part("cls")
        <Either: patches or cls>
    """

    name: PartName
    """Which."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in get_args(PartName):
            raise InterventionError(
                f"{self.name!r} is no part of a layout; there are {', '.join(get_args(PartName))}."
            )

    def describe(self) -> str:
        """What it selects, in words."""
        return "all tokens" if self.name == "all" else self.name.replace("_", " ")

    def bind(self, frame: Frame, at: str) -> Bound:
        """See Selector; refuses a part that the model does not have."""
        if self.name == "all":
            return Bound(lambda n_tokens, device: chosen(slice(None), n_tokens, device))
        frame = frame.at(at)
        self._check(frame)

        def rows(n_tokens: int, device: torch.device) -> ChosenRows:
            return chosen(frame.layout(n_tokens).part(self.name), n_tokens, device)

        return Bound(rows)

    def _check(self, frame: Frame) -> None:
        layout = frame.model_layout.with_test_time_registers(frame.n_added)
        rows = layout.part(self.name)
        if rows.start == rows.stop:
            content = "'bos', 'text'" if isinstance(layout, TextLayout) else "'patches'"
            advice = (
                "Add one before: ExtraTokens() + this, or a TestTimeRegister."
                if self.name == "test_time_registers"
                else f"Select {content} or 'all'."
            )
            raise InterventionError(
                f"{frame.name} has no {self.describe()}: its token axis holds {layout.describe()}. "
                f"{advice}"
            )


ALL_TOKENS = Part("all")


def chosen(
    rows: slice | Tensor, n_tokens: int, device: torch.device
) -> Bool[Tensor, "image token"]:
    """`rows` of a token axis as a mask that all images share."""
    mask = torch.zeros(1, n_tokens, dtype=torch.bool, device=device)
    mask[:, rows] = True
    return mask


@dataclass(frozen=True, repr=False)
class _Combined(Selector):
    """Several selectors as one; a kind says how their rows meet."""

    selectors: tuple[Selector, ...]
    """What is combined."""

    @abstractmethod
    def _meet(self, one: Tensor, other: Tensor) -> ChosenRows:
        """Rows of two of them together; one or both may be the same for all images."""

    def bind(self, frame: Frame, at: str) -> Bound:
        """See Selector."""
        bound = [selector.bind(frame, at) for selector in self.selectors]

        def rows(n_tokens: int, device: torch.device) -> ChosenRows:
            result = bound[0].rows(n_tokens, device)
            for other in bound[1:]:
                result = self._meet(result, other.rows(n_tokens, device))
            return result

        return Bound(rows, [hook for each in bound for hook in each.hooks])


@dataclass(frozen=True, repr=False)
class Either(_Combined):
    """Rows of any of the selectors; what `|` returns."""

    def describe(self) -> str:
        """What it selects, in words."""
        return " or ".join(selector.describe() for selector in self.selectors)

    def _meet(self, one: Tensor, other: Tensor) -> ChosenRows:
        return one | other


@dataclass(frozen=True, repr=False)
class Both(_Combined):
    """Rows of all of the selectors; what `&` returns."""

    def describe(self) -> str:
        """What it selects, in words."""
        return " and ".join(selector.describe() for selector in self.selectors)

    def _meet(self, one: Tensor, other: Tensor) -> ChosenRows:
        return one & other


@dataclass(frozen=True, repr=False)
class Not(Selector):
    """Rows that the selector leaves; what `~` returns."""

    selector: Selector
    """What is left out."""

    def describe(self) -> str:
        """What it selects, in words."""
        return f"all but ({self.selector.describe()})"

    def bind(self, frame: Frame, at: str) -> Bound:
        """See Selector."""
        bound = self.selector.bind(frame, at)
        return Bound(partial(_complement, bound), bound.hooks)


def _complement(bound: Bound, n_tokens: int, device: torch.device) -> ChosenRows:
    return ~bound.rows(n_tokens, device)
