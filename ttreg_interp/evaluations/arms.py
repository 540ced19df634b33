"""Arms of an evaluation: interventions, other checkpoints, and draws of a random control."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from ttreg_interp.errors import DataError
from ttreg_interp.evaluations.by_area import ByArea, NeuronsOnText, TextErased
from ttreg_interp.hooked import HookedViT, weights_hash
from ttreg_interp.interventions import (
    Empty,
    Intervention,
    NeuronSet,
    NoiseNeurons,
    TestTimeRegister,
    ZeroNeurons,
    mean_attention_bias,
)
from ttreg_interp.metrics.compare import random_controls
from ttreg_interp.metrics.comparison import INTACT

Deed: TypeAlias = Intervention | ByArea
Arms: TypeAlias = Mapping[str, Deed | HookedViT | Mapping[str, Deed]]
"""By name: an intervention; another checkpoint (one with trained registers), run as it is; or draws
of a random control, summed up in one row."""

STANDARD = (
    "register",
    "zero",
    "noise",
    "bias",
    "random",
    "random-register",
    "text-move",
    "text-random",
    "text-erase",
)
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
    names: Sequence[str] = ("register", "zero", "bias", "random"),
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
    | noise | the register neurons take random values of the same mean and variance |
    | text-move | the register neurons' activation goes to the patches of a text |
    | text-random | as many random neurons' activation goes there, `n_draws` times |
    | text-erase | the pixels of the text become their mean |

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
    d_mlp = model.cfg.d_mlp
    makers: dict[str, Callable[[], Deed | Mapping[str, Deed]]] = {
        "register": lambda: TestTimeRegister(chosen),
        "zero": lambda: ZeroNeurons(chosen),
        "noise": lambda: NoiseNeurons(chosen, seed=seed),
        "bias": lambda: ZeroNeurons(chosen) + _bias(model, TestTimeRegister(chosen), fit),
        "random": lambda: random_controls(chosen, d_mlp, n_draws, seed),
        "random-register": lambda: random_controls(chosen, d_mlp, n_draws, seed, TestTimeRegister),
        "text-move": lambda: NeuronsOnText(chosen),
        "text-random": lambda: _text_random(random_controls(chosen, d_mlp, n_draws, seed)),
        "text-erase": TextErased,
    }
    return {name: makers[name]() for name in names}


def _text_random(draws: Mapping[str, Intervention]) -> dict[str, Deed]:
    """The same draws as of the arm 'random', moved instead of zeroed."""
    return {
        draw: NeuronsOnText(one.neurons)
        for draw, one in draws.items()
        if isinstance(one, ZeroNeurons)
    }


def _bias(model: HookedViT, register: Intervention, fit: Iterable[Tensor]) -> Intervention:
    batches = list(fit)
    if not batches:
        raise DataError(
            "The arm 'bias' needs images to measure k' and v' on, other ones than those evaluated "
            "(--fit FOLDER)."
        )
    return mean_attention_bias(model, register, batches)
