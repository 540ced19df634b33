"""Means of activations over many images: what mean ablation, fixed registers and biases are told.

One pass over the batches; sums are kept in float64, so that memory does not grow with images.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import InterventionError
from ttreg_interp.interventions.attention import AttentionBias
from ttreg_interp.interventions.base import Intervention
from ttreg_interp.interventions.neuron_set import NeuronSet
from ttreg_interp.interventions.neurons import MeanNeurons
from ttreg_interp.interventions.trained_registers import TrainedRegisters

Batches = Iterable[Tensor]
"""Pixels [batch, channel, height, width]; batches may differ in size."""
Reduce = Callable[[Tensor], Tensor]


@torch.no_grad()
def mean_activations(
    model: Any, batches: Batches, reducers: Mapping[str, Reduce]
) -> dict[str, Tensor]:
    """Means over images of what is read off at hook points.

    Args:
        model: a hooked model; inside `model.intervened(...)` the intervened activations are read.
        batches: pixels.
        reducers: hook point -> function from its activation to [batch, ...], one entry an image.

    Returns:
        hook point -> mean over images, in float32 on the CPU.

    Raises:
        InterventionError: no images.
    """
    sums: dict[str, Tensor] = {}

    def add(reduce: Reduce, activation: Tensor, hook: Any) -> None:
        total = reduce(activation).double().sum(dim=0).cpu()
        sums[hook.name] = sums[hook.name] + total if hook.name in sums else total

    hooks = [(name, partial(add, reduce)) for name, reduce in reducers.items()]
    n_images = 0
    for pixels in batches:
        model.run_with_hooks(pixels, fwd_hooks=hooks)
        n_images += len(pixels)
    if not n_images:
        raise InterventionError("A mean over no images: `batches` was empty. Is it used up?")
    return {name: (total / n_images).float() for name, total in sums.items()}


def mean_neurons(model: Any, neurons: Any, batches: Batches) -> MeanNeurons:
    """Mean ablation with the mean of each neuron over all tokens and images."""
    neurons = NeuronSet.of(neurons)
    names = neurons.hook_names(model)
    reducers = {
        name: partial(_mean_of_neurons, torch.tensor(indices))
        for name, (_, indices) in zip(names, neurons.layers, strict=True)
    }
    means = mean_activations(model, batches, reducers)
    return MeanNeurons(neurons, torch.cat([means[name] for name in names]))


def _mean_of_neurons(index: Tensor, post: Tensor) -> Float[Tensor, "batch selected"]:
    return post[:, :, index.to(post.device)].mean(dim=1)


def mean_trained_registers(model: Any, batches: Batches, from_layer: int = 0) -> TrainedRegisters:
    """Trained registers fixed to their mean over images after every block from `from_layer` on.

    Source: arXiv 2402.17762 (Fix-Reg-Mean, 10,000 training images).

    Raises:
        InterventionError: the model has no trained registers.
    """
    rows = model.layout().trained_registers
    if rows.start == rows.stop:
        raise InterventionError(f"{model.cfg.model_name} has no trained registers to average.")
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(from_layer, model.cfg.n_layers)]
    means = mean_activations(model, batches, dict.fromkeys(names, lambda resid: resid[:, rows]))
    stacked = torch.stack([means[name] for name in names])
    return TrainedRegisters("mean", stacked, from_layer)


def mean_attention_bias(
    model: Any, register: Intervention, batches: Batches, copies: float = 1.0
) -> AttentionBias:
    """k' and v': mean key and value, per layer and head, of the row that `register` adds.

    Zero the register neurons beside it: `ZeroNeurons(neurons) + mean_attention_bias(...)`.

    Args:
        model: a HookedViT.
        register: adds one row, e.g. TestTimeRegister(neurons).
        batches: pixels (the paper takes 1000 images).
        copies: as how many keys the bias is to count.

    Raises:
        InterventionError: `register` adds no row or several.

    Source: arXiv 2506.08010, A.2.
    """
    if register.n_added_tokens != 1:
        raise InterventionError(
            f"{register!r} adds {register.n_added_tokens} rows; k' and v' are the mean key and value of "
            "one. Compose an AttentionBias for each register."
        )
    row = model.layout().n_prefix + model.n_added_tokens
    names = {
        kind: [f"blocks.{layer}.attn.hook_{kind}" for layer in range(model.cfg.n_layers)]
        for kind in "kv"
    }
    reducers = dict.fromkeys([*names["k"], *names["v"]], lambda heads: heads[:, row])
    with model.intervened(register):
        means = mean_activations(model, batches, reducers)
    k, v = (torch.stack([means[name] for name in names[kind]]) for kind in "kv")
    return AttentionBias(k, v, copies=copies)
