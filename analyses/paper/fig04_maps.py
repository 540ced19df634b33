"""Where a register neuron fires, there the outliers are.

Paper and place: arXiv 2506.08010, Fig. 3 (right), 19 and 28.
Question: how well does the map of one register neuron agree with the map of final norms, image by
image, and how well does that of a random neuron?
Command: python -m analyses.paper.fig04_maps --out OUT
Runtime: about 5 s on one CPU core.
Expect: on the planted ViT correlations of 0.8 to 1.0 for planted neurons, near 0 for random ones.
In the paper: maps only, no number; OpenCLIP's L5 n599, L4 n1468 and L3 n1074 match the final norms.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analyses._bench import Bench, BenchConfig
from analyses._figures import RED, bars, panels, sheet
from analyses._run import Findings, main
from ttreg_interp.interventions import NeuronSet
from ttreg_interp.metrics.intervals import mean_interval


@dataclass(frozen=True)
class Config(BenchConfig):
    """Maps of every register neuron."""

    n_shown: int = 4
    """Images in the figure."""
    n_neurons: int = 12
    """At most so many neurons, those of the latest blocks first."""


def maps(bench: Bench, neurons: NeuronSet) -> dict[tuple[int, int], Float[Tensor, "image patch"]]:
    """Activations of neurons at all patches."""
    patches = bench.layout().patches
    read = {
        str((layer, n)): (f"blocks.{layer}.mlp.hook_post", lambda post, n=n: post[:, patches, n])
        for layer, n in neurons
    }
    found = bench.collect(read)
    return {pair: found[str(pair)] for pair in neurons}


def correlation(
    a: Float[Tensor, "image patch"], b: Float[Tensor, "image patch"]
) -> Float[Tensor, " image"]:
    """Pearson's, over the patches of every image."""
    a, b = (values - values.mean(dim=1, keepdim=True) for values in (a, b))
    return torch.cosine_similarity(a.double(), b.double(), dim=1)


def analyse(config: Config) -> Findings:
    """Maps and correlations."""
    bench = config.bench
    pairs = list(bench.neurons)[::-1][: config.n_neurons]
    chosen = NeuronSet.of(pairs)
    random = chosen.matched_random(config.seed, bench.model.cfg.d_mlp)
    found, control = maps(bench, chosen), maps(bench, random)
    agreement = {
        f"block {layer}, neuron {n}": mean_interval(correlation(values, bench.norms), config.seed)
        for (layer, n), values in found.items()
    }
    by_chance = torch.stack([correlation(values, bench.norms) for values in control.values()])
    chance = mean_interval(by_chance.abs().mean(dim=0), config.seed)
    mean = mean_interval(
        torch.stack([correlation(values, bench.norms) for values in found.values()]).mean(dim=0),
        config.seed,
    )
    shown = {"norm, block " + str(bench.outliers.detect_layer): (bench.layout(), bench.norms)}
    shown |= {
        f"block {layer}, n {n}": (bench.layout(), values)
        for (layer, n), values in list(found.items())[::-1][:4]
    }
    layer, n = next(iter(control))
    shown[f"random: block {layer}, n {n}"] = (bench.layout(), control[layer, n])
    drawing, axes = panels(1, 1, 0.18 * len(agreement) + 0.7, 3.3)
    bars(axes[0, 0], agreement | {"|random neurons|": chance}, RED)
    axes[0, 0].set(
        xlabel="correlation with the norm map", xlim=(min(0, axes[0, 0].get_xlim()[0]), 1.02)
    )
    headline = f"correlation with the norm map {mean}; random neurons {chance} (absolute)"
    words = (
        f"Over the patches of an image the activation of a register neuron correlates {mean} with the "
        f"norm after block {bench.outliers.detect_layer} (mean over {len(found)} neurons and "
        f"{len(bench.pixels)} images); the absolute correlation of as many random neurons is {chance}."
    )
    numbers = {"neurons": agreement, "mean": mean, "random": chance}
    figures = {
        "figure": drawing,
        "maps": sheet(list(bench.pixels[: config.n_shown]), shown),
    }
    return Findings(headline, words, numbers, figures, bench.facts)


if __name__ == "__main__":
    main(globals())
