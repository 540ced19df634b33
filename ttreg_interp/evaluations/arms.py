"""Arms of an evaluation: interventions, other checkpoints, and draws of a random control."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from jaxtyping import Bool, Float
from torch import Tensor

from ttreg_interp.errors import DataError
from ttreg_interp.hooked import HookedViT, weights_hash
from ttreg_interp.interventions import (
    Empty,
    Intervention,
    NeuronSet,
    TestTimeRegister,
    ZeroNeurons,
    mean_attention_bias,
)
from ttreg_interp.metrics.compare import random_controls
from ttreg_interp.metrics.comparison import INTACT

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


Deed: TypeAlias = Intervention | ByArea
Arms: TypeAlias = Mapping[str, Deed | HookedViT | Mapping[str, Intervention]]
"""By name: an intervention; another checkpoint (one with trained registers), run as it is; or draws
of a random control, summed up in one row."""

STANDARD = ("register", "zero", "bias", "random", "random-register")
"""Arms that `standard_arms` knows."""


@dataclass(frozen=True, eq=False)
class Run:
    """One arm, or one draw of a control, ready to run."""

    name: str
    """'register', or 'random: draw 3'."""
    arm: str
    """The row of the table that it belongs to."""
    model: HookedViT
    """What runs."""
    deed: Deed
    """What is done to it."""

    @property
    def intervention(self) -> Intervention:
        """What is done to the forward pass, where it is the same for all images.

        Raises:
            DataError: it depends on where a text stands, which only one protocol knows.
        """
        if isinstance(self.deed, Intervention):
            return self.deed
        raise DataError(
            f"Arm {self.name!r} ({self.deed}) depends on where a text stands; only the typographic "
            "evaluation knows that."
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON and for the fingerprint of a run."""
        return {
            "model": self.model.cfg.model_name,
            "weights_hash": weights_hash(self.model.source),
            "image_size": list(self.model.image_size),
            "intervention": self.deed.to_dict(),
        }


def runs_of(model: HookedViT, arms: Arms) -> tuple[Run, ...]:
    """Every arm to run, the intact model first.

    Raises:
        DataError: an arm called 'intact', or a control of fewer than two draws.
    """
    if INTACT in arms:
        raise DataError(f"The name {INTACT!r} is taken by the model as it is; rename the arm.")
    return tuple(_runs(model, {INTACT: Empty(), **arms}))


def _runs(model: HookedViT, arms: Arms) -> Iterator[Run]:
    for name, arm in arms.items():
        if isinstance(arm, HookedViT):
            yield Run(name, name, arm, Empty())
        elif isinstance(arm, Mapping):
            if len(arm) < 2:
                raise DataError(
                    f"Control {name!r} has {len(arm)} draw; fewer than 2 show no spread."
                )
            yield from (Run(f"{name}: {draw}", name, model, one) for draw, one in arm.items())
        else:
            yield Run(name, name, model, arm)


def standard_arms(
    model: HookedViT,
    neurons: Any,
    names: Sequence[str] = STANDARD,
    fit: Iterable[Tensor] = (),
    n_draws: int = 20,
    seed: int = 0,
) -> Arms:
    """The paper's arms by name.

    | name | what it does |
    |---|---|
    | register | a test-time register takes the register neurons (Algorithm 2) |
    | zero | the register neurons are zeroed |
    | bias | the register neurons are zeroed, k' and v' added (A.2) |
    | random | as many random neurons of the same layers are zeroed, `n_draws` times |
    | random-register | as many random neurons are moved to a register, `n_draws` times |

    Args:
        model: any HookedViT.
        neurons: its register neurons.
        names: which arms; the intact model is always there.
        fit: batches of pixels on which k' and v' are measured; other images than those evaluated.
        n_draws: draws of a random control.
        seed: of the draws.

    Returns:
        Arms for `evaluate`.

    Raises:
        DataError: an unknown name, or 'bias' without images to fit it on.

    Source:
        arXiv 2506.08010, sections 3.2 and A.2, table 7; controls of its rebuttal.

    Example:
        >>> from ttreg_interp.hooked import load
        >>> model = load("timm:test_vit?random")
        >>> sorted(standard_arms(model, {3: [7]}, ["register", "random"], n_draws=2))
        ['random', 'register']
    """
    if unknown := [name for name in names if name not in STANDARD]:
        raise DataError(f"No arms {unknown}. There are {', '.join(STANDARD)}; intact always runs.")
    chosen = NeuronSet.of(neurons)
    register, zero = TestTimeRegister(chosen), ZeroNeurons(chosen)
    arms: dict[str, Intervention | Mapping[str, Intervention]] = {}
    for name in names:
        match name:
            case "register":
                arms[name] = register
            case "zero":
                arms[name] = zero
            case "bias":
                arms[name] = zero + _bias(model, register, fit)
            case "random":
                arms[name] = random_controls(chosen, model.cfg.d_mlp, n_draws, seed)
            case "random-register":
                arms[name] = random_controls(
                    chosen, model.cfg.d_mlp, n_draws, seed, make=TestTimeRegister
                )
    return arms


def _bias(model: HookedViT, register: Intervention, fit: Iterable[Tensor]) -> Intervention:
    batches = list(fit)
    if not batches:
        raise DataError(
            "The arm 'bias' needs images to measure k' and v' on, other ones than those evaluated "
            "(--fit FOLDER)."
        )
    return mean_attention_bias(model, register, batches)
