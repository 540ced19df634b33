"""The causal table: what moving, zeroing and replacing neurons does, against random neurons."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import DataError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.interventions import (
    Intervention,
    MeanNeurons,
    NeuronSet,
    NoiseNeurons,
    ResampleNeurons,
    ShuffleNeurons,
    TestTimeRegister,
    ZeroNeurons,
    mean_neurons,
)
from ttreg_interp.metrics.arm_metrics import (
    KL,
    ArmMetric,
    AtLayer,
    Cosine,
    Labels,
    MaxOverMedian,
    Numbers,
    RegisterAttention,
    RelativeChange,
    SameTop1,
    Top1,
)
from ttreg_interp.metrics.arm_runs import ArmRun
from ttreg_interp.metrics.causal_table import CausalTable, Test
from ttreg_interp.metrics.cka_interval import cka_interval
from ttreg_interp.metrics.compare import Images, compare, random_controls
from ttreg_interp.metrics.comparison import INTACT, Arms, Comparison
from ttreg_interp.metrics.intervals import (
    Interval,
    controls_interval,
    false_discovery,
    mcnemar,
    paired_difference,
    sign_flip_test,
)
from ttreg_interp.metrics.similarity import linear_cka

ZEROED, MOVED = "random neurons zeroed", "random neurons moved to a register"
"""The two controls: what an arm is compared with depends on whether it adds a token."""


@dataclass(frozen=True)
class LargestAttention(AtLayer):
    """Attention of [CLS] to the patch that draws most; mean over heads."""

    title: ClassVar[str] = "attention to one patch"

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """See ArmMetric."""
        return (self.layer,)

    def measure(self, run: ArmRun, intact: ArmRun, labels: Labels | None) -> Numbers:
        """See ArmMetric."""
        attention = run.attention[self.layer].mean(dim=1)
        patches = run.layout.of_length(attention.shape[1]).patches
        return attention[:, patches].amax(dim=1)


@dataclass(frozen=True)
class OutputNorm(ArmMetric):
    """Norm of the output; keeps the outputs, because CKA needs those of all images together."""

    title: ClassVar[str] = "output norm"
    outputs: list[Tensor] = field(default_factory=list, repr=False, compare=False)
    """One [batch, output] for every call, so by batch and within it by arm."""

    def measure(self, run: ArmRun, intact: ArmRun, labels: Labels | None) -> Numbers:
        """See ArmMetric."""
        output = run.output.detach().flatten(1).double()
        self.outputs.append(output.cpu())
        return output.norm(dim=1)


def causal_arms(
    model: HookedViT,
    neurons: Any,
    fit: Iterable[Tensor] | None = None,
    seed: int = 0,
    n_samples: int = 512,
) -> dict[str, Intervention]:
    """The usual arms: a register, and the ways to take the neurons out of action.

    Zero is far from what a model has seen; that zeroing hurts does not show that content was lost
    (arXiv 2604.14433). So every way stands beside it: mean, resample, shuffle, noise.

    Args:
        model: any HookedViT.
        neurons: whatever `NeuronSet.of` takes.
        fit: batches of pixels, of other images than are compared, for the stored mean and the
            samples. None: those two arms are left out.
        seed: of every draw.
        n_samples: stored tokens to resample from.

    Example:
        >>> from ttreg_interp.hooked import load
        >>> list(causal_arms(load("timm:test_vit?random"), {3: [7]}))
        ['register', 'zeroed', 'mean of the image', 'shuffled over tokens', 'noise']
    """
    chosen = NeuronSet.of(neurons)
    arms: dict[str, Intervention] = {
        "register": TestTimeRegister(chosen),
        "zeroed": ZeroNeurons(chosen),
        "mean of the image": MeanNeurons(chosen),
        "shuffled over tokens": ShuffleNeurons(chosen, seed=seed),
        "noise": NoiseNeurons(chosen, seed=seed),
    }
    if fit is None:
        return arms
    batches = list(fit)
    samples = _samples(model, chosen, batches, n_samples, seed)
    return arms | {
        "mean of other images": mean_neurons(model, chosen, batches),
        "resampled from other images": ResampleNeurons(chosen, samples=samples, seed=seed),
    }


def causal_table(
    model: HookedViT,
    images: Images,
    neurons: Any,
    *,
    arms: Arms | None = None,
    metrics: Sequence[ArmMetric] | None = None,
    labels: Sequence[int] | Tensor | None = None,
    n_controls: int = 20,
    batch_size: int = 16,
    seed: int = 0,
) -> CausalTable:
    """What arms on some neurons do to norms, attention and output, against matched random neurons.

    For every arm and metric, with x the value of an image:

        against intact:   mean(x_arm - x_intact),  sign-flip permutation test over images
        against random:   mean(x_arm - mean over draws of x_random), the same test

    and over all p-values of the table together the Benjamini-Hochberg adjustment. Top-1 has McNemar's
    test as well, outputs their linear CKA with the intact model's (debiased, jackknife interval).
    All outputs are held until the end, arms x images x output numbers.

    Args:
        model: any HookedViT.
        images: what `compare` takes.
        neurons: whatever `NeuronSet.of` takes; the controls match them layer by layer.
        arms: interventions by name. None: `causal_arms(model, neurons)`.
        metrics: what to measure. None: change and cosine of the output, max/median norm of patches
            and attention of [CLS] to registers and to one patch in the last block; for a classifier
            KL and top-1 agreement, with labels top-1.
        labels: class of every image.
        n_controls: draws of random neurons for each of the two controls.
        batch_size: images of one forward pass.
        seed: of draws, bootstrap and sign flips.

    Returns:
        A CausalTable; print it.

    Raises:
        DataError: fewer than five images, an arm named as a control, or what `compare` refuses.

    Source: the controls of arXiv 2506.08010, Fig. 23 and author response, made one table.

    Example:
        >>> from ttreg_interp.hooked import load
        >>> model = load("timm:test_vit?random")
        >>> table = causal_table(model, torch.randn(6, 3, 160, 160), {3: [7]}, n_controls=2)
        >>> table["zeroed", "relative change", "random"].difference.n
        6
    """
    chosen = NeuronSet.of(neurons)
    named = dict(causal_arms(model, chosen, seed=seed) if arms is None else arms)
    if taken := {ZEROED, MOVED} & set(named):
        raise DataError(f"Arms may not be called {sorted(taken)}: the controls are; rename them.")
    draws = partial(random_controls, chosen, model.cfg.d_mlp, n_controls, seed)
    everything = {**named, ZEROED: draws(), MOVED: draws(make=TestTimeRegister)}
    kept = OutputNorm()
    measured = [*(_metrics(model, labels is not None) if metrics is None else metrics), kept]
    found = compare(model, images, everything, measured, batch_size, labels, seed)
    if found.n_images < 5:
        raise DataError(f"{found.n_images} images are too few for a causal table; give 5 or more.")
    tests = list(_tests(found, named, seed))
    adjusted = false_discovery([test.p_value for test in tests]).tolist()
    return CausalTable(
        comparison=found,
        tests=tuple(replace(t, q_value=q) for t, q in zip(tests, adjusted, strict=True)),
        cka=_cka(found, kept.outputs),
        mcnemar=_mcnemar(found, named),
        neurons=chosen,
        n_controls=n_controls,
    )


def control_of(arm: Intervention) -> str:
    """The control that does the same to random neurons: added tokens change a model by themselves."""
    return MOVED if arm.n_added_tokens else ZEROED


def _metrics(model: HookedViT, labelled: bool) -> list[ArmMetric]:
    always = [RelativeChange(), Cosine(), MaxOverMedian(), RegisterAttention(), LargestAttention()]
    if not model.parts.is_classifier:
        return always
    return [*always, KL(), SameTop1(), *([Top1()] if labelled else [])]


def _tests(found: Comparison, arms: Arms, seed: int) -> Iterator[Test]:
    for name, arm in arms.items():
        if not isinstance(arm, Intervention):
            continue
        for metric in found.metrics:
            mine = found.per_image[name][metric.name]
            control = control_of(arm)
            draws = [
                values[metric.name]
                for arm_name, values in found.per_image.items()
                if arm_name.startswith(f"{control}: ")
            ]
            others = {"random": torch.stack(draws).mean(dim=0)}
            if not metric.against_intact:
                others = {INTACT: found.per_image[INTACT][metric.name], **others}
            for against, theirs in others.items():
                difference = paired_difference(mine, theirs, seed)
                p_value = sign_flip_test(mine, theirs, seed).p_value
                yield Test(name, metric.name, against, difference, p_value, p_value)


def _mcnemar(found: Comparison, arms: Arms) -> dict[str, Any]:
    metric = next((m for m in found.metrics if isinstance(m, Top1)), None)
    if metric is None:
        return {}
    right = {
        arm: found.per_image[arm][metric.name] for arm in (INTACT, *arms) if arm in found.per_image
    }
    return {arm: mcnemar(values, right[INTACT]) for arm, values in right.items() if arm != INTACT}


def _cka(found: Comparison, outputs: list[Tensor]) -> dict[str, Interval]:
    """CKA of every arm's outputs with the intact ones; outputs come by batch, then by arm."""
    names = list(found.per_image)
    by_arm = {name: torch.cat(outputs[i :: len(names)]) for i, name in enumerate(names)}
    intact, result = by_arm[INTACT], {}
    for name, arm in found.arms.items():
        if isinstance(arm, Mapping):
            draws = [linear_cka(intact, by_arm[f"{name}: {draw}"], True) for draw in arm]
            result[name] = controls_interval(draws)
        else:
            result[name] = cka_interval(intact, by_arm[name])
    return result


@torch.no_grad()
def _samples(
    model: HookedViT, neurons: NeuronSet, batches: Sequence[Tensor], n_samples: int, seed: int
) -> Float[Tensor, "sample selected"]:
    """Activations of tokens drawn from all batches."""
    kept: dict[str, list[Tensor]] = {name: [] for name in neurons.hook_names(model)}

    def keep(index: Tensor, post: Tensor, hook: Any) -> None:
        kept[hook.name].append(post[:, :, index.to(post.device)].flatten(0, 1).float().cpu())

    hooks: list[Any] = [
        (name, partial(keep, torch.tensor(chosen)))
        for name, (_, chosen) in zip(kept, neurons.layers, strict=True)
    ]
    for pixels in batches:
        model.run_with_hooks(pixels, fwd_hooks=hooks)
    tokens = torch.cat([torch.cat(parts) for parts in kept.values()], dim=1)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    return tokens[order[:n_samples]]
