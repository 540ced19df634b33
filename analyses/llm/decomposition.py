"""What the sink gives, beside what all other keys give.

Paper and place: arXiv 2402.17762, section 4.2: attention output as the sink's part and the rest.
Question: is what a head takes from the first token the same for every query, so that it is a bias?
Command: python -m analyses.llm.decomposition --out OUT
Runtime: 5 s on one CPU core for the planted model.
Expect: planted: behind block 1 the first token has most attention of three heads in four, its part is
one vector for all queries (cosine 1) and small beside the rest; stories260K: attention below .1.
In the paper: LLaMA2-7B: the sink's part is nearly constant over queries.
"""

from dataclasses import dataclass

from analyses._figures import PAGE, by_layer, panels
from analyses._run import Findings, main
from analyses.llm._bench import Bench, TextConfig, markdown
from ttreg_interp.theory.noop_table import HeadNoOp
from ttreg_interp.theory.sinks import noop_measures

SHOWN = ("attention", "value ratio", "cosine", "sink / other")


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """One language model on some texts."""


def measures(row: HeadNoOp) -> tuple[float, ...]:
    """Numbers of a head, in the order of SHOWN."""
    over_other = row.sink_size.estimate / max(row.other_size.estimate, 1e-12)
    return row.attention.estimate, row.value_ratio.estimate, row.cosine, over_other


def analyse(config: Config) -> Findings:
    """The decomposition, averaged over the heads of a layer."""
    bench = Bench.of(config)
    table = noop_measures(bench.model, bench.ids, "bos", removal=False)
    layers = [
        [measures(row) for row in table.heads if row.layer == layer]
        for layer in range(bench.model.cfg.n_layers)
    ]
    means = [[sum(column) / len(column) for column in zip(*heads, strict=True)] for heads in layers]
    figure, (row,) = panels(1, len(SHOWN), height=1.6, width=PAGE)
    for axes, title, values in zip(row, SHOWN, zip(*means, strict=True), strict=True):
        axes.plot(values, marker="o")
        axes.set_title(title)
        by_layer(axes)
    rows = [(layer, *(f"{value:.3g}" for value in values)) for layer, values in enumerate(means)]
    strongest = max(table.heads, key=lambda head: head.attention.estimate)
    return Findings(
        headline=(
            f"strongest head {strongest.layer}.{strongest.head}: attention "
            f"{strongest.attention.estimate:.2f}, cosine {strongest.cosine:.2f}"
        ),
        words=markdown(("block", *SHOWN), rows),
        numbers={"by_layer": dict(enumerate(means)), "heads": table.to_dict()["heads"]},
        figures={"figure": figure},
        facts=bench.facts(),
    )


if __name__ == "__main__":
    main(globals())
