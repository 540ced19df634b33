"""Outliers emerge after an MLP; the blocks behind it attend to them.

Paper and place: arXiv 2506.08010, section 3.1, Fig. 2, 16 to 18 and 26.
Question: after which part of which block do patch norms jump, and from where on does [CLS] attend?
Command: python -m analyses.paper.fig02_emergence --out OUT
Runtime: about 5 s on one CPU core.
Expect: on the planted ViT the largest step is the MLP of block 3, in every image; the attention of
[CLS] to one patch rises behind it.
In the paper: MLP of block 6 (OpenCLIP ViT-B/16), of block 17 (DINOv2 ViT-L/14); max norm about 150.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from analyses._bench import Bench, BenchConfig
from analyses._figures import by_layer, curve, panels, written_out
from analyses._run import Findings, main
from ttreg_interp.metrics.intervals import mean_interval
from ttreg_interp.metrics.norms import max_over_median
from ttreg_interp.metrics.trace import trace

STAGES = ("attention", "MLP")


@dataclass(frozen=True)
class Config(BenchConfig):
    """Norms and attention, block by block."""


def patch_norms(bench: Bench) -> Float[Tensor, "stage image patch"]:
    """Residual norms of patches: after attention and after the MLP of block 0, of block 1, ..."""
    patches = bench.layout().patches
    names = [
        f"blocks.{layer}.hook_resid_{part}"
        for layer in range(bench.last + 1)
        for part in ("mid", "post")
    ]
    read = {name: (name, lambda resid: resid[:, patches].norm(dim=-1)) for name in names}
    found = bench.collect(read)
    return torch.stack([found[name] for name in names])


def cls_attention(bench: Bench) -> Float[Tensor, "layer image"]:
    """Largest attention of [CLS] to one patch, mean over heads."""
    runs = [trace(bench.model, batch) for batch in bench.pixels.split(bench.batch_size)]
    rows = [run.attention[..., run.layout.patches].mean(dim=2).amax(dim=-1) for run in runs]
    return torch.cat(rows, dim=1)


def stage_name(stage: int) -> str:
    """As people call it."""
    return f"{STAGES[stage % 2]} of block {stage // 2}"


def draw(largest: list, medians: list, attention: list) -> Figure:
    """Norms on the left, attention on the right."""
    figure, axes = panels(1, 2)
    layers = list(range(len(attention)))
    for place, stage in enumerate(STAGES):
        curve(axes[0, 0], largest[place::2], layers, place, f"largest, after {stage}")
    curve(axes[0, 0], medians[1::2], layers, 5, "median, after MLP")
    axes[0, 0].set(yscale="log", ylabel="norm of a patch")
    written_out(axes[0, 0].yaxis)
    curve(axes[0, 1], attention, layers, 0, "to the patch that draws most")
    axes[0, 1].set(ylabel="attention of [CLS]", ylim=(0, None))
    for axis in axes.flat:
        by_layer(axis)
        axis.legend()
    return figure


def analyse(config: Config) -> Findings:
    """Norms and attention of all blocks."""
    bench = config.bench
    norms, attention = patch_norms(bench), cls_attention(bench)
    ratio = max_over_median(norms)  # [stage, image]
    gain = (ratio[1:] / ratio[:-1]).log()
    steps = gain.argmax(dim=0) + 1
    step = int(steps.mode().values)
    agree = mean_interval((steps == step).double(), config.seed)
    factor = mean_interval(gain[step - 1].exp(), config.seed)
    before, behind = (
        attention[slice(*ends)] for ends in ((0, step // 2 + 1), (step // 2 + 1, None))
    )
    drawn = [mean_interval(part.amax(dim=0), config.seed) for part in (before, behind)]
    numbers = {
        "largest_step": stage_name(step),
        "images_with_that_step": agree,
        "factor_of_that_step": factor,
        "largest_norm": [mean_interval(row.amax(dim=-1), config.seed) for row in norms],
        "median_norm": [mean_interval(row.median(dim=-1).values, config.seed) for row in norms],
        "max_over_median": [mean_interval(row, config.seed) for row in ratio],
        "cls_attention": [mean_interval(row, config.seed) for row in attention],
        "attention_before": drawn[0],
        "attention_behind": drawn[1],
    }
    headline = (
        f"largest step: {stage_name(step)}, x{factor} in max/median norm; max norm "
        f"{max(n.estimate for n in numbers['largest_norm']):.0f}"
    )
    words = (
        f"In {agree} of {len(bench.pixels)} images max/median patch norm grows most in the "
        f"{stage_name(step)}, by a factor of {factor}. Up to that block [CLS] gives at most "
        f"{drawn[0]} of its attention to one patch (mean over heads, the largest of the blocks), "
        f"behind it {drawn[1]}."
    )
    figure = draw(numbers["largest_norm"], numbers["median_norm"], numbers["cls_attention"])
    return Findings(headline, words, numbers, {"figure": figure}, bench.facts)


if __name__ == "__main__":
    main(globals())
