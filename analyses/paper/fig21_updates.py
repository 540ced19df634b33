"""What register neurons write is large, and the same in every image.

Paper and place: arXiv 2506.08010, Fig. 21.
Question: how large is the sum of the register neurons' updates at the strongest outlier, and how alike
are its directions in different images, against as many random neurons?
Command: python -m analyses.paper.fig21_updates --out OUT
Runtime: about 5 s on one CPU core.
Expect: on the planted ViT a cosine between images of 1.00 in every block with register neurons; random
neurons write less than a hundredth as much.
In the paper: OpenCLIP ViT-B/16, five neurons of block 6: norms up to about 20, cosines near 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analyses._bench import Bench, BenchConfig
from analyses._figures import COLORS, panels
from analyses._run import Findings, main
from ttreg_interp.interventions import NeuronSet
from ttreg_interp.metrics.intervals import controls_interval, mean_interval
from ttreg_interp.metrics.similarity import mean_cosine_to_others


@dataclass(frozen=True)
class Config(BenchConfig):
    """Updates of the neurons of each block together."""

    n_controls: int = 10
    """Draws of random neurons."""


def at_strongest(bench: Bench) -> dict[int, Float[Tensor, "image neuron"]]:
    """Block -> all its neurons at the patch of largest norm of every image."""
    patches, strongest = bench.layout().patches, bench.norms.argmax(dim=1)
    found: dict[int, list[Tensor]] = {layer: [] for layer, _ in bench.neurons.layers}
    for pixels, places in zip(
        bench.pixels.split(bench.batch_size), strongest.split(bench.batch_size), strict=True
    ):
        rows = torch.arange(len(pixels)), places
        read = {
            str(layer): (f"blocks.{layer}.mlp.hook_post", lambda post: post[:, patches][rows])  # noqa: B023
            for layer in found
        }
        for layer, parts in bench.collect(read, pixels=pixels).items():
            if layer.isdigit():
                found[int(layer)].append(parts)
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def updates(
    bench: Bench, posts: Mapping[int, Float[Tensor, "image neuron"]], neurons: NeuronSet
) -> dict[int, Float[Tensor, "image d_model"]]:
    """Block -> what its neurons write together there."""
    return {
        layer: posts[layer][:, list(ns)]
        @ bench.model.blocks[layer].mlp.W_out[list(ns)].detach().float()
        for layer, ns in neurons.layers
    }


def analyse(config: Config) -> Findings:
    """Norm and consistency, against random neurons."""
    bench = config.bench
    posts = at_strongest(bench)
    mine = updates(bench, posts, bench.neurons)
    random = [updates(bench, posts, bench.random(draw)) for draw in range(config.n_controls)]
    numbers, figure_rows = {}, []
    for layer, update in mine.items():
        norms, cosines = update.norm(dim=1), mean_cosine_to_others(update)
        control = [draw[layer] for draw in random]
        numbers[f"block {layer}"] = {
            "norm": mean_interval(norms, config.seed),
            "cosine": mean_interval(cosines, config.seed),
            "random_norm": controls_interval([float(u.norm(dim=1).mean()) for u in control]),
            "random_cosine": controls_interval(
                [float(mean_cosine_to_others(u).mean()) for u in control]
            ),
        }
        figure_rows.append((layer, norms, cosines, control[0]))
    figure, axes = panels(1, 2)
    for place, (layer, norms, cosines, control) in enumerate(figure_rows):
        color = COLORS[place % len(COLORS)]
        axes[0, 0].scatter(norms, cosines, s=6, color=color, label=f"block {layer}")
        axes[0, 1].scatter(control.norm(dim=1), mean_cosine_to_others(control), s=6, color=color)
    for axis, title in zip(axes[0], ("register neurons", "as many random neurons"), strict=True):
        axis.set(
            title=title,
            xlabel="norm of the update",
            ylabel="cosine to other images",
            ylim=(-0.3, 1.08),
        )
    axes[0, 0].legend()
    top = max(numbers, key=lambda name: numbers[name]["norm"].estimate)
    best = numbers[top]
    headline = (
        f"{top}: norm {best['norm']}, cosine {best['cosine']}; random: norm {best['random_norm']}, "
        f"cosine {best['random_cosine']}"
    )
    words = (
        f"At the patch of largest norm the register neurons of {top} write a vector of norm "
        f"{best['norm']}; between images its directions agree with cosine {best['cosine']}. As many "
        f"random neurons of that block write {best['random_norm']} with cosine "
        f"{best['random_cosine']} (mean and spread over {config.n_controls} draws, "
        f"{len(bench.pixels)} images)."
    )
    alone = [layer for layer, neurons in bench.neurons.layers if len(neurons) == 1]
    if alone:
        words += (
            f" Blocks {alone} have a single register neuron, whose update has one direction by "
            "construction, up to its sign: cosines say nothing there, and norms do."
        )
    return Findings(headline, words, numbers, {"figure": figure}, bench.facts)


if __name__ == "__main__":
    main(globals())
