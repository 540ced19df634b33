"""The residual stream of one text as a landscape of tokens and dimensions.

Paper and place: arXiv 2402.17762, figure 1: magnitudes over tokens and dimensions, in three dimensions.
Question: on which tokens and in which dimensions do the largest entries of a block's output stand?
Command: python -m analyses.llm.picture --out OUT
Runtime: 5 s on one CPU core for the planted model.
Expect: planted: two peaks, both on the first token; stories260K: no peak.
In the paper: LLaMA2-7B: peaks on the first token and the first '.' or newline.
"""

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure

from analyses._figures import COLUMN
from analyses._run import Findings, main
from analyses.llm._bench import Bench, TextConfig


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """One language model on the first of its texts."""

    layer: int | None = None
    """Block whose output is shown; absent: that with the largest entry."""


@torch.no_grad()
def analyse(config: Config) -> Findings:
    """The landscape of one block."""
    bench = Bench.of(config)
    _, cache = bench.model.run_with_cache(
        bench.ids[:1], names_filter=lambda name: name.endswith("hook_resid_post")
    )
    layers = torch.stack(
        [cache["resid_post", at][0].abs() for at in range(bench.model.cfg.n_layers)]
    )
    layer = int(layers.amax(dim=(1, 2)).argmax()) if config.layer is None else config.layer
    size = layers[layer]
    token, dim = divmod(int(size.argmax()), size.shape[1])
    figure = Figure(figsize=(COLUMN, COLUMN), layout="constrained")
    axes = figure.add_subplot(projection="3d")
    xs, ys = torch.meshgrid(torch.arange(size.shape[0]), torch.arange(size.shape[1]), indexing="ij")
    axes.plot_surface(xs.numpy(), ys.numpy(), size.numpy(), cmap="viridis", linewidth=0)  # type: ignore[attr-defined]
    axes.set(xlabel="token", ylabel="dimension", title=f"|x| after block {layer}")
    ratio = float(size.max() / size.median())
    return Findings(
        headline=f"largest |x| {float(size.max()):.4g} at token {token}, dimension {dim}",
        words=(
            f"After block {layer} of {config.lm} the largest entry of one text is {float(size.max()):.4g}, "
            f"{ratio:.0f} x the median, at token {token}, dimension {dim}."
        ),
        numbers={
            "layer": layer,
            "token": token,
            "dim": dim,
            "largest": float(size.max()),
            "over_median": ratio,
        },
        figures={"figure": figure},
        facts=bench.facts(),
    )


if __name__ == "__main__":
    main(globals())
