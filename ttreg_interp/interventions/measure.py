"""What interventions are told of a model, measured on images: means, samples, k' and v', tau.

One pass over the batches at a time; sums are kept in float64, so that memory does not grow with
images.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from math import exp, log
from typing import Any

import torch
from torch import Tensor

from ttreg_interp.errors import ContractError, InterventionError
from ttreg_interp.hooked.rows import AttentionRows
from ttreg_interp.interventions.attention import AttentionBias
from ttreg_interp.interventions.base import Empty, Intervention
from ttreg_interp.interventions.frame import Frame
from ttreg_interp.interventions.masks import key_columns
from ttreg_interp.interventions.neuron_set import NeuronSet
from ttreg_interp.interventions.neurons import MeanNeurons, ResampleNeurons
from ttreg_interp.interventions.registers import TestTimeRegister
from ttreg_interp.interventions.selector import Part, Selector, Tokens
from ttreg_interp.interventions.selectors import select
from ttreg_interp.interventions.trained_registers import TrainedRegisters

Batches = Iterable[Tensor]
"""Pixels [batch, channel, height, width]; batches may differ in size."""
Reduce = Callable[[Tensor], Tensor]

LOG_TAU_TOLERANCE = 0.01
"""How far log tau may be from the value that the next pass would give."""
MOST_PASSES = 20
"""Passes over the images before a calibration gives up."""


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
        ContractError: NaN or inf; names the hook point.
    """
    sums: dict[str, Tensor] = {}
    n_images = 0
    for read in _readings(model, batches, reducers):
        for name, values in read.items():
            total = values.double().sum(dim=0).cpu()
            sums[name] = sums[name] + total if name in sums else total
        n_images += len(next(iter(read.values())))
    return {name: (total / n_images).float() for name, total in sums.items()}


def _readings(
    model: Any, batches: Batches, reducers: Mapping[str, Reduce]
) -> Iterator[dict[str, Tensor]]:
    """What the reducers make of the activations of every batch, by hook point."""
    read: dict[str, Tensor] = {}

    def keep(reduce: Reduce, activation: Tensor, hook: Any) -> None:
        read[hook.name] = _finite(reduce(activation), hook.name)

    hooks = [(name, partial(keep, reduce)) for name, reduce in reducers.items()]
    for pixels in batches:
        with torch.no_grad():
            model.run_with_hooks(pixels, fwd_hooks=hooks)
        yield read
    _need_images(len(read))


def _need_images(n: int) -> None:
    if not n:
        raise InterventionError("There were no images: `batches` was empty. Is it used up?")


def _finite(values: Tensor, name: str) -> Tensor:
    if not values.isfinite().all():
        raise ContractError(
            f"NaN or inf at {name}, of which nothing can be learned. Check the inputs (preprocessed? "
            "finite?) and the dtype."
        )
    return values


def mean_neurons(model: Any, neurons: Any, batches: Batches) -> MeanNeurons:
    """Mean ablation with the mean of each neuron over all tokens and images."""
    neurons = NeuronSet.of(neurons)
    names = neurons.hook_names(model)
    reducers = {
        name: lambda post, index=index: post[:, :, index].mean(dim=1)
        for name, (_, index) in zip(names, neurons.layers, strict=True)
    }
    means = mean_activations(model, batches, reducers)
    return MeanNeurons(neurons, torch.cat([means[name] for name in names]))


def resample_neurons(
    model: Any, neurons: Any, batches: Batches, n_per_image: int = 16, seed: int = 0
) -> ResampleNeurons:
    """Resample ablation with the activations of tokens drawn from other images.

    Args:
        model: a hooked model.
        neurons: what `NeuronSet.of` takes.
        batches: pixels of images that are not those to be ablated.
        n_per_image: tokens drawn from every image, each with all its neurons together.
        seed: of this draw, and of the one from the stored tokens.
    """
    neurons = NeuronSet.of(neurons)
    names = neurons.hook_names(model)
    reducers = {
        name: lambda post, index=index: post[:, :, index]
        for name, (_, index) in zip(names, neurons.layers, strict=True)
    }
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for read in _readings(model, batches, reducers):
        values = torch.cat([read[name] for name in names], dim=2).float().cpu()
        for tokens in values:
            drawn = torch.randint(len(tokens), (n_per_image,), generator=generator)
            samples.append(tokens[drawn])
    return ResampleNeurons(neurons, torch.cat(samples), seed)


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


def mean_key_value(
    model: Any,
    batches: Batches,
    arm: Intervention,
    row: int,
    layers: tuple[int, ...] | None = None,
) -> AttentionBias:
    """k' and v' as the mean key and value of one row over images.

    Keys are read at `hook_k`: after the block's norm, with the key bias, before any rotation. A
    register stands in the prefix, which rotary embeddings do not turn, and k' is not turned either.

    Args:
        model: a hooked model.
        batches: pixels, or token ids of a language model.
        arm: what the row is read under; Empty() for one of the model's own.
        row: of the token axis.
        layers: which layers get a bias; None: all.

    Raises:
        InterventionError: no images.
        ContractError: NaN or inf among the keys or values; names the layer.

    Source: arXiv 2506.08010, A.2.
    """
    chosen = range(model.cfg.n_layers) if layers is None else layers
    names = {kind: [f"blocks.{layer}.attn.hook_{kind}" for layer in chosen] for kind in "kv"}
    reducers = dict.fromkeys([*names["k"], *names["v"]], lambda heads: heads[:, row])
    with model.intervened(arm):
        means = mean_activations(model, batches, reducers)
    k, v = (torch.stack([means[name] for name in names[kind]]) for kind in "kv")
    return AttentionBias(k, v, layers)


def mean_attention_bias(
    model: Any, register: Intervention, batches: Batches, copies: float = 1.0
) -> AttentionBias:
    """k' and v' of the row that `register` adds; see `mean_key_value`.

    Zero the register neurons beside it: `ZeroNeurons(neurons) + mean_attention_bias(...)`.

    Args:
        model: a HookedViT.
        register: adds one row, e.g. TestTimeRegister(neurons).
        batches: pixels (the paper takes 1000 images).
        copies: as how many keys the bias is to count.

    Raises:
        InterventionError: `register` adds no row or several.
    """
    if register.n_added_tokens != 1:
        raise InterventionError(
            f"{register!r} adds {register.n_added_tokens} rows; k' and v' are the mean key and value of "
            "one. Compose an AttentionBias for each register."
        )
    row = model.layout().n_prefix + model.n_added_tokens
    return replace(mean_key_value(model, batches, register, row), copies=copies)


def calibrate_multiplicity(
    model: Any,
    register: TestTimeRegister,
    batches: Batches,
    outliers: Tokens,
    layers: tuple[int, ...] | None = None,
) -> TestTimeRegister:
    r"""The register counting as so many keys, tau, that it draws what the outlier tokens drew.

    One register takes the place of several outlier keys, each of which had a share of the softmax.
    With m the attention of [CLS] on all outlier tokens of the intact model, and m(tau) that on the
    registers (means over images, heads and layers; without [CLS] over patches as queries), tau solves

        m(tau) = m,    found by    tau <- tau * odds(m) / odds(m(tau)),   odds(m) = m / (1 - m)

    until log tau moves by less than 0.01. `TestTimeRegister(neurons, round(tau), assign="same")` adds
    tau registers instead, with the same outputs for a whole tau.

    Args:
        model: a HookedViT.
        register: what to calibrate; its own multiplicity is where the search begins.
        batches: pixels of held-out images; a list, since several passes are made.
        outliers: which tokens of the intact model, e.g. `Outliers(found.threshold,
            found.detect_layer)` of register neurons that were found.
        layers: where attention is compared; None: all blocks after the last register neuron's that
            see the register.

    Raises:
        InterventionError: no images, no outliers among them, no layer to compare, or no tau found.

    Example:
        >>> from ttreg_interp.hooked import HookedViT
        >>> from ttreg_interp.interventions import LargestNorms
        >>> from ttreg_interp.testbed import photograph_tensor, planted_vit
        >>> vit = planted_vit(image_size=96, depth=6)
        >>> register, images = TestTimeRegister(vit.truth), photograph_tensor(96)
        >>> model, last = HookedViT.wrap(vit.module), max(vit.truth)
        >>> calibrate_multiplicity(model, register, [images], LargestNorms(2, last)).multiplicity > 0
        True
    """
    first = max(register.neurons.by_layer()) + 1
    chosen = range(max(first, register.visible_from_layer), model.cfg.n_layers)
    compared = Frame.of(model, 0).layers(chosen if layers is None else layers)
    if not compared:
        raise InterventionError(
            f"{register!r} moves neurons in the last layer of {model.cfg.model_name} or is hidden to its "
            "end: no attention sees what it holds. Name layers=(...) to compare in others."
        )
    wanted = _log_odds(model, Empty(), batches, select(outliers), compared)
    for _ in range(MOST_PASSES):
        drawn = _log_odds(model, register, batches, Part("test_time_registers"), compared)
        if abs(wanted - drawn) < LOG_TAU_TOLERANCE:
            return register
        tau = register.multiplicity * exp(wanted - drawn)
        register = replace(register, multiplicity=tau)
    raise InterventionError(
        f"No multiplicity was found in {MOST_PASSES} passes, the last of them would be "
        f"{register.multiplicity:.3g}. Are the outliers those that these neurons make: {register!r}?"
    )


@torch.no_grad()
def _log_odds(
    model: Any, arm: Intervention, batches: Batches, tokens: Selector, layers: tuple[int, ...]
) -> float:
    """Log odds of the attention on chosen tokens: mean over images, heads, layers and queries."""
    total, n_images = 0.0, 0
    with model.intervened(arm):
        bound = tokens.bind(Frame.of(model, 0), "hook_out")
        for pixels in batches:
            layout = model.layout(pixels.shape).with_test_time_registers(model.n_added_tokens)
            queries = layout.cls if layout.n_cls else layout.patches
            rows = AttentionRows(model, queries, layers)
            model.run_with_hooks(pixels, fwd_hooks=[*bound.hooks, *rows.fwd_hooks()])
            for layer in layers:
                pattern = rows[layer].mean(dim=(1, 2)).double()  # [batch, key]
                keys = key_columns(bound.rows(layout.n_tokens, pattern.device), pattern.shape[1])
                total += float((pattern * keys).sum()) / len(layers)
            n_images += len(pixels)
        _need_images(n_images)
    share = total / n_images
    if not 0 < share < 1:
        raise InterventionError(
            f"{tokens.describe()} draw {share:.3g} of the attention in layers {layers}: there is nothing "
            "to calibrate to. Were outliers found in these images at this threshold?"
        )
    return log(share / (1 - share))
