"""What a register starts from does not matter.

Paper and place: arXiv 2506.08010, Table 10.
Question: do zero, noise of the patches' statistics, or the mean patch as its first value change what the
register holds, or the output?
Command: python -m analyses.paper.tab10_init --out OUT
Runtime: about 45 s on one CPU core.
Expect: on the planted ViT outputs agree with cosine above 0.99 between all starts, and the probe of the
register by no more than its interval.
In the paper: DINOv2 ViT-L/14, IN1k/CIFAR-10/CIFAR-100: zero 84.5/99.1/93.0, random 84.6/99.2/92.8, mean
84.5/99.1/92.9.
"""

from dataclasses import dataclass

from analyses._bench import OUTPUT, BenchConfig
from analyses._figures import COLUMN, bars, panels
from analyses._run import Findings, main
from analyses.paper._crops import REGISTER, crops, probed, register_tokens
from analyses.paper.tab01_probes import normed
from ttreg_interp.interventions import TestTimeRegister
from ttreg_interp.metrics.intervals import mean_interval
from ttreg_interp.metrics.similarity import cosine

STARTS = {
    "zero": "zero",
    "noise": "patch_gaussian",
    "mean patch": "patch_mean",
    "zero before ln_pre": "zero_before_ln_pre",
}


@dataclass(frozen=True)
class Config(BenchConfig):
    """Probes on crops, as tab01_probes has them."""

    n_images: int = 16
    """So many images are the classes."""
    n_each: int = 9
    """Crops of every image."""


def analyse(config: Config) -> Findings:
    """A probe and a cosine for every start."""
    bench = config.bench
    arms = {name: TestTimeRegister(bench.neurons, init=init) for name, init in STARTS.items()}  # type: ignore[arg-type]
    views = crops(bench, config.n_images, config.n_each)
    accuracy = {
        name: probed(views, normed(bench, register_tokens(bench, views.pixels, arm)[REGISTER]))
        for name, arm in arms.items()
    }
    outputs = {name: bench.collect({}, arm)[OUTPUT] for name, arm in arms.items()}
    alike = {
        name: mean_interval(cosine(output, outputs["zero"]), config.seed)
        for name, output in outputs.items()
    }
    figure, axes = panels(1, 2, 1.5, 2 * COLUMN)
    bars(axes[0, 0], accuracy)
    bars(axes[0, 1], alike)
    axes[0, 0].set(xlabel="probe of the register", xlim=(0, 1.02))
    axes[0, 1].set(xlabel="output, cosine to start zero", yticklabels=[])
    headline = "probe of the register: " + "; ".join(f"{name} {v}" for name, v in accuracy.items())
    worst = min(alike.values(), key=lambda value: value.estimate)
    words = (
        f"{headline[0].upper()}{headline[1:]} (which image a crop is of). The outputs have cosine {worst} or "
        f"more to those with start zero ({len(bench.pixels)} images)."
    )
    numbers = {"probe_of_the_register": accuracy, "cosine_of_output": alike}
    return Findings(headline, words, numbers, {"figure": figure}, bench.facts)


if __name__ == "__main__":
    main(globals())
