"""k' and v' against a test-time register, against zeroing alone, and against nothing.

Paper and place: arXiv 2506.08010, appendix A.2, Table 7 and Figures 7 to 9.
Question: does an attention bias keep the output where zeroing the register neurons breaks it, with no
large norm left in any layer, and which of the three fits is best on images it has not seen?
Command: python -m analyses.theory.bias_table --out runs/theory/bias_table
Runtime: about 3 min on one CPU core for the planted ViT; about 30 min for a ViT-Ti on 300 images.
Expect: on the planted ViT zeroing changes [CLS] by more than 0.5 and every fit by less than 0.1; the
largest patch norm over the median falls from above 10 to below 3 under register and fits alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from matplotlib.figure import Figure
from torch import Tensor

from analyses._bench import BenchConfig
from analyses._figures import BLUE, PAGE
from analyses._run import Findings, main
from ttreg_interp.hooked import HookedViT
from ttreg_interp.interventions import (
    AttentionBias,
    Empty,
    ExtraTokens,
    Intervention,
    NeuronSet,
    TestTimeRegister,
    ZeroNeurons,
)
from ttreg_interp.metrics.intervals import mean_interval, paired_difference
from ttreg_interp.metrics.trace import Trace, trace
from ttreg_interp.theory.attention_bias import AttentionBiasFit, FitOptions, fit_attention_bias
from ttreg_interp.theory.bias_fit import Method

INTACT, MEAN = "intact", "k', v' mean"


@dataclass(frozen=True)
class Config(BenchConfig):
    """One model, half of the images to fit on, the other half to compare the arms."""

    limit: int = 300
    """At most so many images, drawn at random."""
    steps: int = 300
    """Adam steps of the trained fit."""
    copies: float = 4.0
    """As how many keys register and mean fit count in two more arms: one sink in place of several."""
    batch_size: int = 8
    """Images of one forward pass."""


def fits(
    config: Config, model: HookedViT, neurons: NeuronSet, fitted: Tensor, held_out: Tensor
) -> dict[str, AttentionBiasFit]:
    """Every method, in all layers; and the mean only behind the first register neurons."""
    behind = tuple(range(neurons.layers[0][0] + 1, model.cfg.n_layers))
    chosen = {name: (name, None) for name in get_args(Method)} | {
        "mean, later layers": ("mean", behind),
        "least_squares, later layers": ("least_squares", behind),
    }
    return {
        f"k', v' {name}": fit_attention_bias(
            model,
            fitted,
            neurons,
            method,
            FitOptions(
                layers=layers, steps=config.steps, batch_size=config.batch_size, seed=config.seed
            ),
            held_out,
        )
        for name, (method, layers) in chosen.items()
    }


def arms(
    config: Config, model: HookedViT, neurons: NeuronSet, fitted: Mapping[str, AttentionBiasFit]
) -> dict[str, Intervention]:
    """The rows of the table, the controls among them."""
    random = neurons.matched_random(config.seed, model.cfg.d_mlp)
    return {
        INTACT: Empty(),
        "zeroed": ZeroNeurons(neurons),
        "test-time register": TestTimeRegister(neurons),
        **{name: fit.intervention() for name, fit in fitted.items()},
        f"test-time register, {config.copies:g} copies": TestTimeRegister(
            neurons, multiplicity=config.copies
        ),
        f"k', v' mean, {config.copies:g} copies": fitted["k', v' mean"].intervention(config.copies),
        "control: random neurons zeroed": ZeroNeurons(random),
        "control: zeroed, empty token": ZeroNeurons(neurons) + ExtraTokens(),
        "control: k', v' mean, shuffled": shuffled(fitted["k', v' mean"], config.seed),
    }


def shuffled(fit: AttentionBiasFit, seed: int) -> Intervention:
    """k' and v' of a fit with their entries in another order: the same sizes, another direction."""
    order = torch.randperm(fit.k.shape[-1], generator=torch.Generator().manual_seed(seed))
    bias = AttentionBias(fit.k[..., order], fit.v[..., order], fit.layers)  # type: ignore[arg-type]
    return ZeroNeurons(fit.neurons) + bias


def columns(run: Trace, intact: Trace, labels: Tensor | None) -> dict[str, Tensor]:
    """One value an image."""
    norms = run.patch_norms
    attention = run.attention[-1].mean(dim=1)[:, run.layout.patches]
    change = (run.output - intact.output).norm(dim=-1) / intact.output.norm(dim=-1)
    found = {
        "change of the output": change,
        "max/median norm": (norms.amax(dim=-1) / norms.median(dim=-1).values).amax(dim=0),
        "largest attention": attention.amax(dim=-1),
    }
    if labels is not None:
        found["top-1"] = (run.output.argmax(dim=-1) == labels).double()
    return found


@torch.no_grad()
def measure(
    config: Config,
    model: HookedViT,
    compared: Mapping[str, Intervention],
    pixels: Tensor,
    labels: Tensor | None,
) -> dict[str, dict[str, Tensor]]:
    """Arm -> column -> one value an image."""
    found: dict[str, dict[str, list[Tensor]]] = {name: {} for name in compared}
    batches = pixels.split(config.batch_size)
    classes = [None] * len(batches) if labels is None else labels.split(config.batch_size)
    for batch, truth in zip(batches, classes, strict=True):
        intact = trace(model, batch)
        for name, arm in compared.items():
            with model.intervened(arm):
                run = trace(model, batch)
            for column, values in columns(run, intact, truth).items():
                found[name].setdefault(column, []).append(values)
    return {
        name: {column: torch.cat(parts) for column, parts in each.items()}
        for name, each in found.items()
    }


def table(config: Config, found: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Means with intervals; top-1 also as the paired difference to the intact model."""
    names = list(found[INTACT])
    paired = "top-1" in names
    head = ["arm", *names, *(["top-1 - intact", "top-1 - zeroed"] if paired else [])]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for arm, values in found.items():
        cells = [arm, *(str(mean_interval(values[name], config.seed)) for name in names)]
        if paired:
            cells += [
                str(paired_difference(values["top-1"], found[other]["top-1"], config.seed))
                for other in (INTACT, "zeroed")
            ]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def plot(found: Mapping[str, Mapping[str, Tensor]], seed: int) -> Figure:
    """Every column, arm by arm."""
    names = list(found[INTACT])
    figure = Figure(figsize=(PAGE, 0.22 * len(found) + 0.6), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        for place, values in enumerate(found.values()):
            mean = mean_interval(values[name], seed)
            axis.plot([mean.low, mean.high], [place, place], color=BLUE)
            axis.plot(mean.estimate, place, "o", ms=3, color=BLUE)
        axis.set(title=name, yticks=range(len(found)), yticklabels=list(found))
    axes[0].invert_yaxis()
    return figure


def analyse(config: Config) -> Findings:
    bench = config.bench
    model, neurons, pixels, labels = bench.model, bench.neurons, bench.pixels, bench.labels
    half = len(pixels) // 2
    fitted = fits(config, model, neurons, pixels[:half], pixels[half:])
    for name, fit in fitted.items():
        fit.save(
            config.out / f"{name.split(' ', 2)[2].replace(', ', '-').replace(' ', '_')}.safetensors"
        )
    compared = arms(config, model, neurons, fitted)
    found = measure(
        config, model, compared, pixels[half:], None if labels is None else labels[half:]
    )
    words = (
        f"{config.model}, {neurons.describe()}: k' and v' fitted on {half} images, all arms measured on "
        f"the other {len(pixels) - half}. Means over images with 95 % bootstrap intervals; the norm is "
        "the largest patch norm over the median one, the worst of all layers; attention is that of [CLS] "
        f"to one patch in the last layer, mean over heads.\n\n{table(config, found)}"
    )
    numbers = {
        arm: {name: mean_interval(v, config.seed) for name, v in values.items()}
        for arm, values in found.items()
    }
    change = {arm: each["change of the output"] for arm, each in numbers.items()}
    headline = (
        f"change of the output: zeroed {change['zeroed']}, register {change['test-time register']}, "
        f"k', v' mean {change[MEAN]}"
    )
    return Findings(headline, words, numbers, {"figure": plot(found, config.seed)}, bench.facts)


if __name__ == "__main__":
    main(globals())
