r"""Three ways to k' and v', from copying a register to learning.

With a bias, head $h$ gives query $q$ the output

$$z = (1 - p)\, z_0 + p\, v', \qquad p = e^{q\cdot k'/\sigma} \Big/ \Big(e^{q\cdot k'/\sigma} + \sum_j e^{q\cdot k_j/\sigma}\Big),$$

$z_0$ being what it gives without. $k'$ enters through the softmax, $v'$ linearly.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import ContractError, DataError
from ttreg_interp.interventions import AttentionBias, Empty, Intervention, NeuronSet, ZeroNeurons
from ttreg_interp.theory.batches import Inputs

LayerHeads = Float[Tensor, "layer head d_head"]
Teacher = Literal["intact", "register"]

LEAST_SLOPE = 1e-4
"""Root mean square attention on k' below which it does not determine v'."""


@dataclass(frozen=True)
class Source:
    """The row whose key and value k' and v' are."""

    arm: Intervention
    """What it is read under."""
    row: int
    """Where it stands."""
    added: bool
    """Whether the arm adds it, so that the plain model does not have it."""

    @classmethod
    def register(cls, model: Any, register: Intervention) -> "Source":
        """The one row that a test-time register adds.

        Raises:
            DataError: it adds none or several.
        """
        if register.n_added_tokens != 1:
            raise DataError(
                f"{register!r} adds {register.n_added_tokens} rows; k' and v' are the key and value of "
                "one. Fit a bias for each register, and compose them."
            )
        return cls(register, model.layout().n_prefix + model.n_added_tokens, added=True)

    @classmethod
    def own(cls, row: int) -> "Source":
        """A row of the model itself, such as the first token of a text."""
        return cls(Empty(), row, added=False)

    def tokens(self, rows: Tensor) -> Tensor:
        """The rows that the plain model has too."""
        if not self.added:
            return rows
        return torch.cat((rows[:, : self.row], rows[:, self.row + 1 :]), dim=1)


def biased(neurons: NeuronSet, bias: AttentionBias) -> Intervention:
    """The arm of a bias: it replaces what the zeroed neurons did."""
    return ZeroNeurons(neurons) + bias


# ---------------------------------------------------------------------- least squares


@torch.no_grad()
def least_squares(
    model: Any,
    batches: Iterable[Inputs],
    start: AttentionBias,
    neurons: NeuronSet,
    source: Source,
    teacher: Teacher,
    ridge: float,
) -> AttentionBias:
    r"""v' that brings each layer's heads closest to the teacher's, k' kept; layer by layer.

    $$\min_{v'} \sum_{\text{images, tokens}} \lVert z_\text{teacher} - z(v')\rVert^2
      + \lambda\, n\, \lVert v' - v'_\text{mean}\rVert^2.$$

    For a fixed k' this is linear in v', and convex; in both it would be neither, and the register's
    key hardly varies between images. z(v') is affine, so two probes, v' = 0 and v' = 1, tell it
    exactly for any attention that answers to `hook_v` and `hook_z` (rotated, gated, grouped).
    Layers are fitted in order, each with the biases before it in place: it meets the residual
    stream that it will meet in use.

    Raises:
        DataError: the fit is singular: no query attends to k' in some head, and ridge is 0.
    """
    k, v = start.k.tensor, start.v.tensor.double()
    layers = start.layers or ()
    for place, layer in enumerate(layers):
        probe = partial(_probe, model, neurons, k, v, layers[: place + 1])
        cross, square, n = _normal_equations(model, batches, layer, probe, source, teacher)
        _check_determined(square / n, layer, ridge)
        v[place] = (cross + ridge * n * v[place]) / (square + ridge * n)
    return AttentionBias(k, v.float(), layers=layers)  # type: ignore[arg-type]


def _probe(
    model: Any,
    neurons: NeuronSet,
    k: Tensor,
    v: Tensor,
    layers: tuple[int, ...],
    value: float,
    inputs: Tensor,
) -> Float[Tensor, "batch token head d_head"]:
    """z of the last of `layers` with all entries of its v' equal to `value`."""
    n = len(layers)
    v = torch.cat((v[: n - 1], torch.full_like(v[:1], value)))
    arm = biased(neurons, AttentionBias(k[:n], v.to(k), layers=layers))  # type: ignore[arg-type]
    return _heads(model, inputs, arm, layers[-1])


def _heads(model: Any, inputs: Tensor, arm: Intervention, layer: int) -> Tensor:
    seen: list[Tensor] = []
    keep = (f"blocks.{layer}.attn.hook_z", lambda z, hook: seen.append(z.double()))
    with model.intervened(arm):
        model.run_with_hooks(inputs, fwd_hooks=[keep], stop_at_layer=layer + 1)
    return seen[0]


def _normal_equations(
    model: Any, batches: Iterable[Inputs], layer: int, probe: Any, source: Source, teacher: Teacher
) -> tuple[Tensor, Tensor, int]:
    """Sums over images and tokens, per head and dimension: slope x residual, slope^2; and the rows."""
    cross, square, n = torch.zeros(()), torch.zeros(()), 0
    for inputs in batches:
        if teacher == "register":
            target = source.tokens(_heads(model, inputs, source.arm, layer))
        else:
            target = _heads(model, inputs, Empty(), layer)
        at_zero = probe(0.0, inputs)
        slope = probe(1.0, inputs) - at_zero
        cross = cross + (slope * (target - at_zero)).sum(dim=(0, 1)).cpu()
        square = square + slope.square().sum(dim=(0, 1)).cpu()
        n += slope.shape[0] * slope.shape[1]
    return cross, square, n


def _check_determined(mean_square: Float[Tensor, "head d_head"], layer: int, ridge: float) -> None:
    heads = (mean_square.amin(dim=1).sqrt() < LEAST_SLOPE).nonzero().flatten().tolist()
    if heads and ridge == 0:
        raise DataError(
            f"Singular fit: in layer {layer} the queries of heads {heads} put less than "
            f"{LEAST_SLOPE:g} of their attention on k', so v' there could be anything. Give ridge > 0 "
            "(v' stays near the mean), name other layers, or use method='mean'."
        )


# ---------------------------------------------------------------------- training


def trained(
    model: Any,
    batches: Iterable[Inputs],
    start: AttentionBias,
    neurons: NeuronSet,
    steps: int,
    learning_rate: float,
) -> tuple[AttentionBias, list[float]]:
    r"""k' and v' that make the output most like the intact model's, by Adam from the mean.

    $$\min_{k', v'} \operatorname{mean}_\text{images}
      \lVert f_{k', v'} - f_\text{intact}\rVert^2 / \lVert f_\text{intact}\rVert^2.$$

    Entries are learned in units of the root mean square of their layer, so that one learning rate
    fits all layers; it falls to 0 as a cosine. Batches come in their own order, again and again:
    nothing is random. The model's weights get no gradients.

    Returns:
        The bias, and the loss of every step.

    Raises:
        ContractError: the loss is NaN or inf.
        DataError: the loss ends above twice what it began with.
    """
    origin = {"k": start.k.tensor.to(model.cfg.device), "v": start.v.tensor.to(model.cfg.device)}
    units = {name: t.square().mean(dim=(1, 2), keepdim=True).sqrt() for name, t in origin.items()}
    moved = {name: torch.zeros_like(t, requires_grad=True) for name, t in origin.items()}
    optimiser = torch.optim.Adam(list(moved.values()), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    losses: list[float] = []
    for inputs in _cycled(batches, steps):
        now = {name: origin[name] + units[name] * moved[name] for name in origin}
        loss = _loss(model, inputs, biased(neurons, _bias(now, start.layers)))
        if not loss.isfinite():
            raise ContractError(
                f"{model.cfg.model_name}: the loss is {loss.item()} at step {len(losses)} of training "
                "k' and v'. Lower the learning rate, or run in float32."
            )
        gradients = torch.autograd.grad(loss, list(moved.values()))
        for parameter, gradient in zip(moved.values(), gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    _check_learned(losses)
    found = {name: (origin[name] + units[name] * moved[name]).detach().cpu() for name in origin}
    return _bias(found, start.layers), losses


def _check_learned(losses: list[float]) -> None:
    tenth = max(1, len(losses) // 10)
    last = sum(losses[-tenth:]) / tenth
    if last > 2 * losses[0]:
        raise DataError(
            f"Training k' and v' made the loss larger, from {losses[0]:.3g} to {last:.3g} after "
            f"{len(losses)} steps: Adam's first steps are its largest. Take more steps, or a lower "
            "learning rate."
        )


def _bias(tensors: dict[str, Tensor], layers: tuple[int, ...] | None) -> AttentionBias:
    return AttentionBias(tensors["k"], tensors["v"], layers)  # type: ignore[arg-type]


def _loss(model: Any, inputs: Tensor, arm: Intervention) -> Float[Tensor, ""]:
    with torch.no_grad():
        intact = model(inputs).flatten(1)
    with model.intervened(arm):
        output = model(inputs).flatten(1)
    return ((output - intact).square().sum(dim=1) / intact.square().sum(dim=1)).mean()


def _cycled(batches: Iterable[Inputs], steps: int) -> Iterator[Tensor]:
    done = 0
    while done < steps:
        for inputs in batches:
            if done == steps:
                return
            done += 1
            yield inputs
