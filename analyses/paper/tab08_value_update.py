"""Several registers give [CLS] what one gives.

Paper and place: arXiv 2506.08010, Table 8.
Question: attention output = sum over registers p v + sum over others p v; how alike are the registers'
sums with one and with more registers, and with trained registers merged into one?
Command: python -m analyses.paper.tab08_value_update --out OUT
Runtime: about 15 s on one CPU core.
Expect: on the planted ViT 0.99 with 2 registers, falling to about 0.89 with 5.
In the paper: DINOv2 ViT-L/14: 1.000, .998, .995, .991, .985 for 1 to 5; four trained registers merged
into one .834.
"""

from dataclasses import dataclass

from analyses._bench import BenchConfig
from analyses._figures import COLUMN, curve, panels
from analyses._run import Findings, main
from analyses.paper._cls import REGISTERS, cls_parts
from ttreg_interp.interventions import TestTimeRegister, TrainedRegisters
from ttreg_interp.metrics.intervals import mean_interval
from ttreg_interp.metrics.similarity import cosine


@dataclass(frozen=True)
class Config(BenchConfig):
    """The last attention layer."""

    most: int = 5
    """Registers at most."""


def analyse(config: Config) -> Findings:
    """The registers' part, by number of registers."""
    bench = config.bench
    counts = range(1, config.most + 1)
    parts = {n: cls_parts(bench, TestTimeRegister(bench.neurons, n), bench.last) for n in counts}
    alike = {n: mean_interval(cosine(part.parts[REGISTERS], parts[1].parts[REGISTERS]), config.seed) for n, part in parts.items()}  # fmt: skip
    share = {n: mean_interval(part.attention[REGISTERS], config.seed) for n, part in parts.items()}
    full = {
        n: mean_interval(cosine(part.full, parts[1].full), config.seed) for n, part in parts.items()
    }
    numbers = {"cosine_of_update": alike, "attention": share, "cosine_of_full_output": full}
    trained = ""
    if bench.layout().n_trained_registers > 1:
        kept, merged = (cls_parts(bench, TrainedRegisters(state), bench.last).parts[REGISTERS] for state in ("kept", "synthetic"))  # fmt: skip
        numbers["trained_merged"] = mean_interval(cosine(kept, merged), config.seed)
        trained = f" Trained registers merged into one: {numbers['trained_merged']}."
    figure, axes = panels(1, 1, 1.9, COLUMN)
    curve(axes[0, 0], list(alike.values()), counts, 0, "update of the registers, cosine to one")
    curve(axes[0, 0], list(full.values()), counts, 1, "whole attention output, cosine to one")
    curve(axes[0, 0], list(share.values()), counts, 2, "attention on all registers")
    axes[0, 0].set(xlabel="registers", xticks=list(counts), ylim=(0, 1.05))
    axes[0, 0].legend()
    headline = "cosine to one register: " + ", ".join(
        f"{value}" for value in list(alike.values())[1:]
    )
    words = (
        f"In block {bench.last} the registers' part of what [CLS] gets has cosine "
        + ", ".join(f"{value} with {n}" for n, value in list(alike.items())[1:])
        + f" registers to that of one ({len(bench.pixels)} images). Together they hold "
        f"{share[1]} (1) to {share[config.most]} ({config.most}) of its attention.{trained}"
    )
    if len(bench.neurons) < config.most:
        words += (
            f" There are {len(bench.neurons)} register neurons: of more registers than that some get "
            "none, and are empty tokens."
        )
    return Findings(headline, words, numbers, {"figure": figure}, bench.facts)


if __name__ == "__main__":
    main(globals())
