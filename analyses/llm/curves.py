"""The largest magnitudes of every layer, beside the median.

Paper and place: arXiv 2402.17762, figures 1-3: top-3 magnitudes and median by layer.
Question: do a few entries of the residual stream tower over the rest, in which blocks?
Command: python -m analyses.llm.curves --out OUT
Runtime: 5 s on one CPU core for the planted model.
Expect: planted: 4000 on two dimensions of the first token, from block 1 to block 5, the median near 1;
stories260K: none, the largest entry some ten times the median (a real model without a sink).
In the paper: LLaMA2-7B: dimensions 1415 and 2533, 2546.8 and -1502.0, median .2, from block 2 on.
"""

from dataclasses import dataclass

from analyses._figures import COLUMN, by_layer, panels
from analyses._run import Findings, main
from analyses.llm._bench import Bench, TextConfig
from ttreg_interp.metrics.massive_activations import massive_activations


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """One language model on some texts."""


def analyse(config: Config) -> Findings:
    """Magnitudes by layer."""
    bench = Bench.of(config)
    found = massive_activations(bench.model, bench.ids)
    figure, ((axes,),) = panels(1, 1, width=COLUMN)
    for place in range(3):
        axes.plot([row.top[place] for row in found.layers], marker="o", label=f"top {place + 1}")
    axes.plot([row.median for row in found.layers], "k--", label="median")
    axes.set(yscale="log", ylabel="|x|")
    by_layer(axes)
    axes.legend()
    largest = max(row.top[0] for row in found.layers)
    return Findings(
        headline=f"largest |x| {largest:.4g}, dimensions {list(found.dims)}",
        words=f"{found.summary()}\n\n```\n{found}\n```",
        numbers=found.to_dict(),
        figures={"figure": figure},
        facts=bench.facts(),
    )


if __name__ == "__main__":
    main(globals())
