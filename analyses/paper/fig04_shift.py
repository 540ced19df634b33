"""Outliers go where the register neurons' activations are put, in any shape.

Paper and place: arXiv 2506.08010, section 3.2, Fig. 1, 4, 22, 23, 24 and 29.
Question: do outliers and attention follow when the register neurons' largest activation is put on a
random patch, on a heart or into an added token; and do random neurons, or random neurons with the
register neurons' values, do the same?
Command: python -m analyses.paper.fig04_shift --out OUT
Runtime: about 15 s on one CPU core.
Expect: on the planted ViT every image has its largest norm in the target and none elsewhere; both
controls leave the outliers where they were.
In the paper: OpenCLIP ViT-B/16: the chosen patch takes the norm in all images, the max of the others
falls from about 150 to 40; controls do not move outliers.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from matplotlib.figure import Figure
from torch import Tensor

from analyses._bench import Bench, BenchConfig
from analyses._figures import COLORS, panels, sheet, written_out
from analyses._run import Findings, main
from ttreg_interp.interventions import (
    CopyRegisterValuesTo,
    Empty,
    Intervention,
    MoveNeurons,
    RandomPatches,
    Shape,
    TestTimeRegister,
)
from ttreg_interp.interventions.frame import PatchGrid
from ttreg_interp.interventions.places import OnGrid
from ttreg_interp.metrics.intervals import mean_interval


@dataclass(frozen=True)
class Config(BenchConfig):
    """Where to, and what else moves."""

    n_shown: int = 3
    """Images in the figure."""


@dataclass(frozen=True)
class Seen:
    """What one arm shows."""

    norms: Tensor
    """[image, patch] at the detection layer."""
    attention: Tensor
    """[image, patch], of [CLS] in the last block, mean over heads."""


def arms(bench: Bench) -> dict[str, tuple[Intervention, OnGrid | None]]:
    """Arms with their targets."""
    size = tuple(bench.pixels.shape[-2:])
    patch = RandomPatches(1, seed=bench.seed, image_size=size)
    heart = Shape("heart", image_size=size)
    random = bench.random()
    return {
        "intact": (Empty(), None),
        "to a random patch": (MoveNeurons(bench.neurons, to=patch), patch),
        "to a heart": (MoveNeurons(bench.neurons, to=heart), heart),
        "to a register": (TestTimeRegister(bench.neurons), None),
        "control: random neurons": (MoveNeurons(random, to=patch), patch),
        "control: random neurons, register values": (
            CopyRegisterValuesTo(bench.neurons, random, to=patch),
            patch,
        ),
    }


def see(bench: Bench, arm: Intervention) -> Seen:
    """Norms and attention under an arm."""
    patches = bench.layout(arm).patches
    pattern = f"blocks.{bench.last}.attn.hook_pattern"
    found = bench.collect(
        {
            "norms": (bench.resid, lambda resid: resid[:, patches].norm(dim=-1)),
            "attention": (pattern, lambda rows: bench.reader(rows)[..., patches].mean(dim=1)),
        },
        arm,
    )
    return Seen(found["norms"], found["attention"])


def target_mask(bench: Bench, target: OnGrid) -> Bool[Tensor, " patch"]:
    """The target on the patch grid."""
    layout = bench.layout()
    grid = PatchGrid(layout.height, layout.width, *bench.model.parts.patch_size)
    return target.on_grid(grid).flatten(1)[0]


def measure(bench: Bench, seen: Seen, target: OnGrid | None) -> dict[str, Any]:
    """Where norms and attention are."""
    seed, outside = bench.seed, torch.ones(seen.norms.shape[1], dtype=torch.bool)
    found: dict[str, Any] = {}
    if target is not None:
        inside = target_mask(bench, target)
        outside = ~inside
        hit = inside[seen.norms.argmax(dim=1)]
        found["largest_norm_in_target"] = mean_interval(hit, seed)
        above = (seen.norms > bench.threshold).float()
        found["target_that_is_outlier"] = mean_interval(above[:, inside].mean(dim=1), seed)
        found["attention_on_target"] = mean_interval(seen.attention[:, inside].sum(dim=1), seed)
    rest = seen.norms[:, outside]
    found["outliers_elsewhere"] = mean_interval((rest > bench.threshold).sum(dim=1), seed)
    found["largest_norm_elsewhere"] = mean_interval(rest.amax(dim=1), seed)
    found["largest_attention_elsewhere"] = mean_interval(
        seen.attention[:, outside].amax(dim=1), seed
    )
    return found


def draw(bench: Bench, seen: dict[str, Seen]) -> Figure:
    """How norms spread over all patches, an arm a panel."""
    figure, axes = panels(2, 3, 1.4)
    top = max(float(one.norms.amax()) for one in seen.values())
    low = min(float(one.norms.amin()) for one in seen.values())
    bins = torch.logspace(torch.tensor(low).log10(), torch.tensor(top).log10(), 40)
    for axis, color, (name, one) in zip(axes.flat, COLORS, seen.items(), strict=False):
        counts = torch.histogram(one.norms.flatten().double(), bins.double()).hist
        axis.stairs(counts / len(bench.pixels) + 1e-3, bins, fill=True, color=color)
        axis.axvline(bench.threshold, color="k", ls=":", lw=0.8)
        axis.set(xscale="log", yscale="log", ylim=(1e-2, 1e3), title=name)
        written_out(axis.xaxis)
        axis.label_outer()
    figure.supxlabel("norm of a patch (dotted: threshold)", fontsize=7)
    figure.supylabel("patches an image", fontsize=7)
    return figure


def analyse(config: Config) -> Findings:
    """All arms."""
    bench = config.bench
    chosen = arms(bench)
    seen = {name: see(bench, arm) for name, (arm, _) in chosen.items()}
    numbers = {name: measure(bench, seen[name], target) for name, (_, target) in chosen.items()}
    maps = {
        name.replace("control: ", ""): (bench.layout(), one.attention) for name, one in seen.items()
    }
    patch, heart, register = (
        numbers[f"to a {name}"] for name in ("random patch", "heart", "register")
    )
    control, copied = (numbers[name] for name in list(numbers)[4:])
    headline = (
        f"largest norm in the target: random patch {patch['largest_norm_in_target']}, heart "
        f"{heart['largest_norm_in_target']}; random neurons {control['largest_norm_in_target']}, with "
        f"register values {copied['largest_norm_in_target']}"
    )
    words = (
        f"Moved to one random patch, the largest norm is there in {patch['largest_norm_in_target']} of "
        f"{len(bench.pixels)} images, with {patch['outliers_elsewhere']} outliers elsewhere (intact: "
        f"{numbers['intact']['outliers_elsewhere']}); [CLS] gives that patch {patch['attention_on_target']} "
        f"of its attention in the last block. Of a heart {heart['target_that_is_outlier']} of the patches "
        f"become outliers. A register leaves {register['outliers_elsewhere']} outliers among the patches. "
        f"Random neurons put the largest norm there in {control['largest_norm_in_target']}, random neurons "
        f"that get the register neurons' values in {copied['largest_norm_in_target']} of the images, with "
        f"{control['outliers_elsewhere']} and {copied['outliers_elsewhere']} outliers elsewhere. But is the "
        "size of a value without effect? With those values the target is above the threshold in "
        f"{copied['target_that_is_outlier']} of the images and draws {copied['attention_on_target']} of the "
        f"attention of [CLS] (random neurons with their own values: {control['attention_on_target']})."
    )
    figures = {
        "figure": draw(bench, seen),
        "maps": sheet(list(bench.pixels[: config.n_shown]), maps, "magma"),
    }
    return Findings(headline, words, numbers, figures, bench.facts)


if __name__ == "__main__":
    main(globals())
