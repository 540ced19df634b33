"""A handful of neurons write the outliers; elsewhere they are silent.

Paper and place: arXiv 2506.08010, section 3.1, Fig. 3, 20 and 27.
Question: how many neurons of the block where outliers emerge make 90 % of what its MLP adds to them
along their own direction, and what do these do at other tokens?
Command: python -m analyses.paper.fig03_sparsity --out OUT
Runtime: about 5 s on one CPU core.
Expect: on the planted ViT the 2 neurons planted in block 3, and no others.
In the paper: 5 neurons of block 6 dominate in OpenCLIP ViT-B/16, fewer than 25 of block 17 in
DINOv2 ViT-L/14.
"""

from dataclasses import dataclass

from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from analyses._bench import Bench, BenchConfig
from analyses._figures import BLUE, GREY, RED, panels
from analyses._run import Findings, main
from ttreg_interp.metrics.intervals import mean_interval


@dataclass(frozen=True)
class Config(BenchConfig):
    """One block's neurons at outliers and elsewhere."""

    layer: int | None = None
    """Block; default the one where outliers emerge."""
    share: float = 0.9
    """Share of the update that the counted neurons make."""


@dataclass(frozen=True)
class Activity:
    """Mean activations of all neurons of a block, image by image."""

    outliers: Float[Tensor, "image neuron"]
    """Mean over the image's outliers."""
    others: Float[Tensor, "image neuron"]
    """Mean |a| over its other patches."""
    along: Float[Tensor, " neuron"]
    """What one unit of a neuron adds along the outliers' mean update."""


def activity(bench: Bench, layer: int) -> Activity:
    """Read one block."""
    patches = bench.layout().patches
    post = f"blocks.{layer}.mlp.hook_post"
    found = bench.collect({"post": (post, lambda post: post[:, patches])})["post"]
    chosen = bench.is_outlier.any(dim=1)
    mask = bench.is_outlier[chosen].float()[:, :, None]
    found = found[chosen]
    outliers = (found * mask).sum(dim=1) / mask.sum(dim=1)
    others = (found.abs() * (1 - mask)).sum(dim=1) / (1 - mask).sum(dim=1)
    write = bench.model.blocks[layer].mlp.W_out.detach().float()
    update = (outliers @ write).mean(dim=0)
    return Activity(outliers, others, write @ (update / update.norm()))


def fewest(parts: Float[Tensor, " neuron"], share: float) -> list[int]:
    """The fewest neurons whose parts make so much of the sum of all."""
    order = parts.argsort(descending=True)
    n = int((parts[order].cumsum(0) < share * parts.sum()).sum()) + 1
    return order[:n].tolist()


def count(neurons: list[int]) -> str:
    """In words."""
    return f"{len(neurons)} neuron{'s' * (len(neurons) != 1)}"


def draw(found: Activity, chosen: list[int], layer: int) -> Figure:
    """Sorted activations, and how they spread."""
    figure, axes = panels(1, 2)
    mean = found.outliers.mean(dim=0).abs()
    order = mean.argsort(descending=True)
    axes[0, 0].semilogx(range(1, len(order) + 1), mean[order], color=BLUE, label="at outliers")
    axes[0, 0].semilogx(
        range(1, len(order) + 1), found.others.mean(dim=0)[order], color=GREY, label="elsewhere"
    )
    axes[0, 0].set(xlabel=f"neuron of block {layer}, by rank", ylabel="mean |activation|")
    parts = (found.outliers.mean(dim=0) * found.along).sort(descending=True).values
    axes[0, 1].semilogx(range(1, len(parts) + 1), parts.cumsum(0) / parts.sum(), color=BLUE)
    axes[0, 1].axvline(len(chosen), color=RED, ls="--", lw=0.8, label=count(chosen))
    axes[0, 1].set(xlabel="neurons, best first", ylabel="share of the update along it")
    for axis in axes.flat:
        axis.legend()
    return figure


def analyse(config: Config) -> Findings:
    """Count the neurons."""
    bench = config.bench
    layer = bench.emerges_at if config.layer is None else config.layer
    found = activity(bench, layer)
    parts = found.outliers.mean(dim=0) * found.along
    chosen = fewest(parts, config.share)
    each = [float(len(fewest(image * found.along, config.share))) for image in found.outliers]
    here, elsewhere = (
        mean_interval(values[:, chosen].abs().mean(dim=1), config.seed)
        for values in (found.outliers, found.others)
    )
    known = [neuron for at, neuron in bench.neurons if at == layer]
    numbers = {
        "layer": layer,
        "neurons": sorted(chosen),
        "register_neurons_there": known,
        "neurons_by_image": mean_interval(each, config.seed),
        "activation_at_outliers": here,
        "activation_elsewhere": elsewhere,
        "share_of_the_block": len(chosen) / parts.numel(),
    }
    headline = (
        f"{len(chosen)} of {parts.numel()} neurons of block {layer} make {config.share:.0%}; mean "
        f"|activation| {here} at outliers, {elsewhere} elsewhere"
    )
    words = (
        f"Of the {parts.numel()} neurons of block {layer} {len(chosen)} make {config.share:.0%} of what "
        f"its MLP adds to outliers along the mean of that: {sorted(chosen)[:10]}. Of them "
        f"{len(set(chosen) & set(known))} are among the register neurons of this block, {known}. One "
        f"image by itself needs {numbers['neurons_by_image']}. Their mean |activation| is {here} at "
        f"outliers and {elsewhere} at other patches ({len(each)} images)."
    )
    return Findings(headline, words, numbers, {"figure": draw(found, chosen, layer)}, bench.facts)


if __name__ == "__main__":
    main(globals())
