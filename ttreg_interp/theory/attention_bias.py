"""k' and v' in place of register neurons: fitted, measured on held-out images, and kept."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import DataError
from ttreg_interp.hooked.load import weights_hash
from ttreg_interp.interventions import (
    Intervention,
    NeuronSet,
    TestTimeRegister,
    ZeroNeurons,
    mean_key_value,
)
from ttreg_interp.interventions.frame import Frame
from ttreg_interp.metrics.intervals import mean_interval, paired_difference
from ttreg_interp.provenance import versions
from ttreg_interp.theory.batches import Batches, Inputs
from ttreg_interp.theory.bias_fit import AttentionBiasFit, HeldOut, Method
from ttreg_interp.theory.bias_methods import (
    Source,
    Teacher,
    biased,
    least_squares,
    trained,
)

__all__ = ["AttentionBiasFit", "FitOptions", "HeldOut", "fit_attention_bias", "relative_changes"]


@dataclass(frozen=True)
class FitOptions:
    """Every choice of a fit."""

    register: Intervention | None = None
    """Adds the row whose key and value k' and v' start from. None: TestTimeRegister(neurons)."""
    row: int | None = None
    """A row of the intact model in its place: 0 for a language model whose sink is its first token."""
    layers: tuple[int, ...] | None = None
    """Which layers get a bias. None: all, as in the paper."""
    teacher: Teacher = "intact"
    """Whose heads least squares follows: those of the intact model, or of the register arm."""
    ridge: float = 1e-6
    """Pull of least squares towards the mean v', in units of squared attention: a head that puts less
    than about the square root of it on k' keeps the mean. 0 refuses such heads."""
    steps: int = 300
    """Adam steps of a trained fit."""
    learning_rate: float = 0.02
    """Of Adam, in units of the root mean square entry of a layer."""
    held_out: float = 0.25
    """Share of the images kept from the fit, where no others are given."""
    least_images: int = 8
    """Fewest images to fit on."""
    batch_size: int = 8
    """Images of one forward pass."""
    workers: int = 0
    """Processes that decode images."""
    seed: int = 0
    """Of the bootstrap intervals; the fits themselves draw nothing."""

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1 or self.ridge < 0 or self.steps < 1 or self.learning_rate <= 0:
            raise DataError(
                f"held_out={self.held_out} is a share between 0 and 1, ridge={self.ridge} at least 0, "
                f"steps={self.steps} at least 1, learning_rate={self.learning_rate} above 0."
            )
        if self.teacher not in get_args(Teacher):
            raise DataError(f"teacher={self.teacher!r}: it is one of {get_args(Teacher)}.")
        if self.row is not None and (self.register is not None or self.teacher == "register"):
            raise DataError(
                f"row={self.row} takes k' and v' from the intact model, so there is no register to "
                "read or follow: leave out register= and teacher='register', or leave out row=."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        register = None if self.register is None else self.register.to_dict()
        layers = None if self.layers is None else list(self.layers)
        return {**vars(self), "register": register, "layers": layers}


def fit_attention_bias(
    model: Any,
    images: Any,
    neurons: Any,
    method: Method = "mean",
    options: FitOptions | None = None,
    held_out: Any = None,
) -> AttentionBiasFit:
    """k' and v', per layer and head, in place of what register neurons do.

    - `mean` (the paper): mean key and value of a test-time register over the images.
    - `least_squares`: k' of `mean`; v' from least squares on the heads' output, layer by layer.
    - `trained`: k' and v' from `mean`, then Adam on the intact model's output; weights stay.

    See `theory.bias_methods` for what each minimises, and why.

    Args:
        model: a hooked model, plain (or under interventions that are to stay).
        images: what `find_register_neurons` takes; or token ids, for a language model.
        neurons: register neurons; they are zeroed on all tokens.
        method: which.
        options: every other choice.
        held_out: other images to measure on; None: a share of `images` is kept from the fit.

    Returns:
        The fit, with its change of the output on held-out images beside that of zeroing alone and of
        the register.

    Raises:
        DataError: too few images, images of several sizes, of another size held out than fitted, a
            singular fit.
        ContractError: NaN or inf in keys, values or loss.
        InterventionError: neurons or layers that the model does not have.

    Source: arXiv 2506.08010, A.2 (mean); arXiv 2402.17762, equation 3 (learned from scratch).

    Example:
        >>> from ttreg_interp.hooked import HookedViT
        >>> from ttreg_interp.testbed import planted_vit, photograph_tensor
        >>> vit = planted_vit(image_size=96, depth=6)
        >>> fit = fit_attention_bias(HookedViT.wrap(vit.module), photograph_tensor(96), vit.truth)
        >>> fit.held_out.bias.high < 0.3 * fit.held_out.zeroed.low
        True
    """
    if method not in get_args(Method):
        raise DataError(f"method={method!r}: it is one of {', '.join(get_args(Method))}.")
    options, neurons = options or FitOptions(), NeuronSet.of(neurons)
    every = Batches.of(model, images, options.batch_size, options.workers)
    fitted, others = every.split(options.held_out)
    if held_out is not None:
        fitted = every
        others = Batches.of(model, held_out, options.batch_size, options.workers)
    n_images, size = fitted.need(options.least_images, "to fit on")
    _same_resolution(size, others.need(2, "held out")[1])
    layers = Frame.of(model, 0).layers(options.layers)
    source = _source(model, neurons, options)
    bias, losses = mean_key_value(model, fitted, source.arm, source.row, layers), []
    if method == "least_squares":
        bias = least_squares(
            model, fitted, bias, neurons, source, options.teacher, ridge=options.ridge
        )
    if method == "trained":
        bias, losses = trained(model, fitted, bias, neurons, options.steps, options.learning_rate)
    arms = {"bias": biased(neurons, bias), "zeroed": ZeroNeurons(neurons)}
    arms |= {"register": source.arm} if source.added else {}
    return AttentionBiasFit(
        bias=bias,
        neurons=neurons,
        method=method,
        n_images=n_images,
        image_size=size,
        held_out=_measured(relative_changes(model, others, arms), options.seed),
        model=str(model.cfg.model_name),
        weights_hash=weights_hash(model.source),
        provenance=_provenance(options, every, losses),
    )


def relative_changes(
    model: Any, batches: Iterable[Inputs], arms: Mapping[str, Intervention]
) -> dict[str, Float[Tensor, " image"]]:
    """||f_arm - f_intact|| / ||f_intact|| of the output, for every image, in float64."""
    changes: dict[str, list[Tensor]] = {name: [] for name in arms}
    for inputs in batches:
        with torch.no_grad():
            intact = model(inputs).double().flatten(1)
            for name, arm in arms.items():
                with model.intervened(arm):
                    output = model(inputs).double().flatten(1)
                changes[name].append(((output - intact).norm(dim=1) / intact.norm(dim=1)).cpu())
    return {name: torch.cat(parts) for name, parts in changes.items()}


def _source(model: Any, neurons: NeuronSet, options: FitOptions) -> Source:
    if options.row is not None:
        return Source.own(options.row)
    return Source.register(model, options.register or TestTimeRegister(neurons))


def _same_resolution(fitted: Any, held_out: Any) -> None:
    if fitted != held_out:
        raise DataError(
            f"Fitted on images of {fitted} pixels, held out {held_out}: k' and v' hold for one "
            "resolution, as the number of keys they compete with changes. Resize one of them."
        )


def _measured(changes: dict[str, Tensor], seed: int) -> HeldOut:
    bias, zeroed, register = changes["bias"], changes["zeroed"], changes.get("register")
    return HeldOut(
        n_images=len(bias),
        bias=mean_interval(bias, seed),
        zeroed=mean_interval(zeroed, seed),
        register=None if register is None else mean_interval(register, seed),
        bias_minus_zeroed=paired_difference(bias, zeroed, seed),
        bias_minus_register=None if register is None else paired_difference(bias, register, seed),
    )


def _provenance(options: FitOptions, images: Batches, losses: list[float]) -> dict[str, Any]:
    tenth = max(1, len(losses) // 10)
    ends = {"first": sum(losses[:tenth]) / tenth, "last": sum(losses[-tenth:]) / tenth}
    return {
        "versions": versions(),
        "options": options.to_dict(),
        "images_digest": images.digest(),
        **({"mean_loss_of_a_tenth_of_the_steps": ends} if losses else {}),
    }
