"""Does a real model do what the closed-form one does? Its three steps, measured.

Paper and place: arXiv 2506.08010, section 6: what connects the model to measurements.
Question: (1) do the register neurons put outliers along one direction? (2) does that sink take the
attention? (3) is what it gives a constant that switches the heads off?
Command: python -m analyses.theory.empirical --out runs/theory/empirical
Runtime: about 3 min on one CPU core for the planted ViT and its 16 photographs.
Expect: on the planted ViT outliers point along what the neurons write (cosine above 0.9, random
neurons near 0); behind the neurons outlier and register both take over 0.9 of the attention of all
heads and switch them off by more than 0.8, and an empty token with the neurons zeroed does neither.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import cosine_similarity

from analyses._bench import BenchConfig
from analyses._figures import BLUE, GREEN, PAGE, RED
from analyses._run import Findings, main
from ttreg_interp.hooked import HookedViT
from ttreg_interp.interventions import (
    Empty,
    ExtraTokens,
    NeuronSet,
    Outliers,
    TestTimeRegister,
    ZeroNeurons,
)
from ttreg_interp.metrics.intervals import Interval, mean_interval
from ttreg_interp.theory.noop_table import NoOpTable
from ttreg_interp.theory.sinks import noop_measures

COLORS = {"outlier": BLUE, "register": GREEN, "control: empty token": RED}
MEASURES = ("attention", "value_ratio", "cosine", "mlp_gain", "no_op")


@dataclass(frozen=True)
class Config(BenchConfig):
    """One model and its register neurons."""

    limit: int = 32
    """At most so many images, drawn at random."""
    ratio: float = 4.0
    """A patch is an outlier if its norm exceeds this many medians."""
    removal: bool = True
    """Also measure the output without each layer's attention: most of the time."""
    batch_size: int = 8
    """Images of one forward pass."""


@torch.no_grad()
def residuals(
    model: HookedViT, pixels: Tensor, layer: int, batch_size: int
) -> Float[Tensor, "image patch d_model"]:
    """Patches after a block."""
    found: list[Tensor] = []
    hook = (
        f"blocks.{layer}.hook_resid_post",
        lambda resid, hook: found.append(resid[:, model.layout().patches]),
    )
    for batch in pixels.split(batch_size):
        model.run_with_hooks(batch, fwd_hooks=[hook])
    return torch.cat(found)


def direction(model: HookedViT, neurons: NeuronSet) -> Float[Tensor, " d_model"]:
    """What the neurons write together, each at the same activation."""
    rows = [model.blocks[layer].mlp.W_out[list(ns)].sum(dim=0) for layer, ns in neurons.layers]
    return torch.stack(rows).sum(dim=0).detach()


def along(
    patches: Float[Tensor, "image patch d_model"],
    chosen: Bool[Tensor, "image patch"],
    towards: Float[Tensor, " d_model"],
    seed: int,
) -> Interval:
    """Mean cosine of the chosen patches with a direction, image by image."""
    centred = patches - patches.median(dim=1, keepdim=True).values
    cosine = cosine_similarity(centred, towards, dim=-1)
    some = chosen.any(dim=1)
    return mean_interval((cosine * chosen).sum(dim=1)[some] / chosen.sum(dim=1)[some], seed)


def aligned(
    config: Config, model: HookedViT, neurons: NeuronSet, pixels: Tensor
) -> tuple[dict[str, Interval], float]:
    """Step 1: where outliers and other patches point; and the norm above which one is an outlier."""
    patches = residuals(model, pixels, model.cfg.n_layers - 2, config.batch_size)
    norms = patches.norm(dim=-1)
    threshold = config.ratio * float(norms.median())
    outlier = norms > threshold
    random = neurons.matched_random(config.seed, model.cfg.d_mlp)
    written = direction(model, neurons)
    return {
        "outliers": along(patches, outlier, written, config.seed),
        "control: other patches": along(patches, ~outlier, written, config.seed),
        "control: outliers, random neurons": along(
            patches, outlier, direction(model, random), config.seed
        ),
    }, threshold


def tables(
    config: Config, model: HookedViT, neurons: NeuronSet, pixels: Tensor, threshold: float
) -> dict[str, NoOpTable]:
    """Steps 2 and 3: the outliers of the intact model, their register, and an empty token."""
    outliers = Outliers(threshold, layer=model.cfg.n_layers - 2)
    settings = {
        "outlier": (Empty(), outliers),
        "register": (TestTimeRegister(neurons), "test_time_registers"),
        "control: empty token": (ZeroNeurons(neurons) + ExtraTokens(), "test_time_registers"),
    }
    found = {}
    for name, (arm, sink) in settings.items():
        with model.intervened(arm):
            found[name] = noop_measures(model, pixels, sink, config.removal, config.batch_size)
    return found


def by_layer(table: NoOpTable, name: str) -> list[float]:
    """Mean over the heads of each layer."""
    values: dict[int, list[float]] = {}
    for row in table.heads:
        value = getattr(row, name)
        values.setdefault(row.layer, []).append(
            value.estimate if isinstance(value, Interval) else value
        )
    return [sum(heads) / len(heads) for heads in values.values()]


def plot(found: Mapping[str, NoOpTable]) -> Figure:
    """Every measure by layer, sink by sink."""
    removed = any(table.layers for table in found.values())
    figure = Figure(figsize=(PAGE, 1.8), layout="constrained")
    axes = figure.subplots(1, len(MEASURES) + removed)
    for name, table in found.items():
        for axis, measure in zip(axes, MEASURES, strict=False):
            axis.plot(by_layer(table, measure), color=COLORS[name], label=name)
            axis.set(title=measure.replace("_", " "), xlabel="layer")
        if removed:
            change = [row.sink_only.estimate for row in table.layers]
            axes[-1].semilogy(change, color=COLORS[name])
            axes[-1].set(title="change, sink only", xlabel="layer")
    axes[0].legend(fontsize=5)
    return figure


def analyse(config: Config) -> Findings:
    bench = config.bench
    model, neurons, pixels = bench.model, bench.neurons, bench.pixels
    cosines, threshold = aligned(config, model, neurons, pixels)
    found = tables(config, model, neurons, pixels, threshold)
    behind = neurons.layers[-1][0] + 1
    late = {
        name: {
            measure: sum(by_layer(table, measure)[behind:]) / (model.cfg.n_layers - behind)
            for measure in MEASURES
        }
        for name, table in found.items()
    }
    lines = [
        f"{config.model}, {neurons.describe()}, {len(pixels)} images; 95 % bootstrap intervals.",
        "(1) Cosine to what the neurons write, after the last block but one, from the median patch: "
        + "; ".join(f"{name} {value}" for name, value in cosines.items()) + ".",
        f"(2, 3) Means over the heads of layers {behind} and later:",
        *(
            f"- {name}: " + ", ".join(f"{measure} {value:.3f}" for measure, value in each.items())
            for name, each in late.items()
        ),
        *(f"## {name}\n\n{table.to_markdown()}" for name, table in found.items()),
    ]  # fmt: skip
    numbers = {
        "cosine": cosines,
        "later_layers": late,
        "tables": {name: table.to_dict() for name, table in found.items()},
    }
    attention = {name: f"{each['attention']:.3f}" for name, each in late.items()}
    headline = f"attention on the sink, later layers: {attention}; cosine of outliers {cosines['outliers']}"
    figures = {"figure": plot(found)}
    return Findings(headline, "\n\n".join(lines), numbers, figures, bench.facts)


if __name__ == "__main__":
    main(globals())
