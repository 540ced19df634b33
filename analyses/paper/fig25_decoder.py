"""The output rows of register neurons write few dimensions, the same ones.

Paper and place: arXiv 2506.08010, Fig. 25.
Question: how much of a register neuron's output row lies in its two largest dimensions, do the rows
share them, and do they point along the outliers, against all other neurons of the block?
Command: python -m analyses.paper.fig25_decoder --out OUT
Runtime: about 5 s on one CPU core; reads the weights, and images only for the outlier direction.
Expect: on the planted ViT all of it (1.00), the same two dimensions, cosine to the outliers above 0.9.
In the paper: OpenCLIP ViT-B/16, block 5: large weights in dimensions 579 and 408 (about 0.10 against
0.04 in random neurons).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analyses._bench import Bench, BenchConfig
from analyses._figures import GREY, RED, panels
from analyses._run import Findings, main
from ttreg_interp.metrics.intervals import controls_interval


@dataclass(frozen=True)
class Config(BenchConfig):
    """Output rows, LayerScale included."""


def direction(bench: Bench) -> Float[Tensor, " d_model"]:
    """Mean outlier minus mean other patch, at the detection layer; a unit vector."""
    patches = bench.layout().patches
    resid = bench.collect({"x": (bench.resid, lambda x: x[:, patches])})["x"]
    towards = resid[bench.is_outlier].mean(dim=0) - resid[~bench.is_outlier].mean(dim=0)
    return towards / towards.norm()


def top_share(rows: Float[Tensor, "neuron d_model"], n: int = 2) -> Float[Tensor, " neuron"]:
    """Share of a row's squared length in its `n` largest dimensions."""
    squares = rows.square()
    return squares.topk(n, dim=1).values.sum(dim=1) / squares.sum(dim=1)


def analyse(config: Config) -> Findings:
    """Rows of all blocks that have register neurons."""
    bench = config.bench
    towards = direction(bench)
    numbers, drawn = {}, []
    for layer, neurons in bench.neurons.layers:
        rows = bench.model.blocks[layer].mlp.W_out.detach().float()
        others = torch.tensor([n for n in range(len(rows)) if n not in neurons])
        mine, rest = rows[list(neurons)], rows[others]
        cosine = torch.cosine_similarity(rows, towards[None], dim=1)
        numbers[f"block {layer}"] = {
            "neurons": list(neurons),
            "top2_share": top_share(mine),
            "top2_share_of_others": controls_interval(top_share(rest)),
            "dimensions": mine.abs().topk(2, dim=1).indices.sort(dim=1).values,
            "cosine_to_outliers": cosine[list(neurons)],
            "cosine_of_others": controls_interval(cosine[others]),
        }
        drawn.append((layer, neurons, mine, rest))
    figure, axes = panels(1, len(drawn), 1.7)
    for axis, (layer, neurons, mine, rest) in zip(axes[0], drawn, strict=True):
        axis.plot(rest.abs().quantile(0.99, dim=0), color=GREY, lw=0.6, label="others, 99th pct.")
        for place, row in enumerate(mine):
            axis.plot(
                row.abs(), color=RED, lw=0.7, label="register neurons" if place == 0 else None
            )
        axis.set(title=f"block {layer}: {', '.join(map(str, neurons[:4]))}", xlabel="dimension")
    axes[0, 0].set_ylabel("|output weight|")
    axes[0, 0].legend()
    shares = torch.cat([entry["top2_share"] for entry in numbers.values()])
    cosines = torch.cat([entry["cosine_to_outliers"] for entry in numbers.values()])
    pairs = [tuple(pair) for entry in numbers.values() for pair in entry["dimensions"].tolist()]
    common = max(set(pairs), key=pairs.count)
    chance = [entry["top2_share_of_others"] for entry in numbers.values()][-1]
    headline = (
        f"top-2 dimensions hold {float(shares.mean()):.2f} of a row's squared length (others "
        f"{chance.estimate:.3f}); most often {common}; cosine to outliers {float(cosines.mean()):.2f}"
    )
    words = (
        f"The two largest dimensions of a register neuron's output row hold {float(shares.mean()):.2f} of "
        f"its squared length on average (other neurons of the last such block: {chance}, mean and 2.5 to "
        f"97.5 percentile). The pair {common} is that of {pairs.count(common)} of {len(pairs)} neurons. "
        f"Rows have cosine {float(cosines.min()):.2f} to {float(cosines.max()):.2f} with the direction "
        f"from other patches to outliers after block {bench.outliers.detect_layer}."
    )
    return Findings(headline, words, numbers, {"figure": figure}, bench.facts)


if __name__ == "__main__":
    main(globals())
