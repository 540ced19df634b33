"""Which activations bring an outlier back: patching sweeps, clean into corrupted.

Paper and place: arXiv 2506.08010, section 3.1 (a causal chain of neurons); method of arXiv 2202.05262.
Question: with the register neurons zeroed the outliers are gone; where must what they were be put back,
by block and kind of token, by head, by single neuron, to bring back their norm?
Command: python -m analyses.paper.patching --out OUT
Runtime: about 25 s on one CPU core.
Expect: on the planted ViT the outlier tokens' own MLP output in block 3 brings back over half of the norm,
heads and other tokens nothing; single planted neurons of blocks 3 and 4 bring back a part each, random
neurons nothing.
In the paper: not reported as a sweep; edits of blocks up to 5 change block 6 by themselves (OpenCLIP).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from torch import Tensor
from transformer_lens.patching import generic_activation_patch

from analyses._bench import Bench, BenchConfig, mean_where
from analyses._figures import BLUE, bars, panels
from analyses._run import Findings, main
from ttreg_interp.interventions import ZeroNeurons
from ttreg_interp.metrics.intervals import Interval, mean_interval

KINDS = ("outliers", "[CLS]", "other patches")


@dataclass(frozen=True)
class Config(BenchConfig):
    """Clean: the intact model. Corrupted: the same images, register neurons zeroed."""

    n_images: int = 3
    """So many images with outliers."""
    beside: tuple[Literal["resid_pre", "attn_out"], ...] = ("resid_pre", "attn_out")
    """What to put back by kind of token, beside the output of the MLP."""
    n_random: int = 4
    """Random neurons beside the register neurons, in every block that has some."""


@dataclass
class Sweep:
    """The norm at the clean run's outliers, of whatever run came last."""

    bench: Bench
    """Images with outliers only."""
    seen: Tensor | None = None
    """Of the last run, one an image."""

    def norm(self, output: Tensor) -> Float[Tensor, " image"]:
        """A metric for TransformerLens, which hands on the output; the norm was seen on the way."""
        assert self.seen is not None
        return self.seen

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Every run inside is seen."""
        patches = self.bench.layout().patches

        def see(resid: Tensor, hook: Any) -> None:
            self.seen = mean_where(resid[:, patches].norm(dim=-1), self.bench.is_outlier)

        with self.bench.model.hooks(fwd_hooks=[(self.bench.resid, see)]):
            yield


def tokens_of(bench: Bench) -> dict[str, Bool[Tensor, "image token"]]:
    """Rows by kind."""
    layout = bench.layout()
    found = {
        kind: torch.zeros(len(bench.pixels), layout.n_tokens, dtype=torch.bool) for kind in KINDS
    }
    found["outliers"][:, layout.patches] = bench.is_outlier
    found["[CLS]"][:, layout.cls] = True
    found["other patches"][:, layout.patches] = ~bench.is_outlier
    return found


@torch.no_grad()
def sweeps(config: Config, bench: Bench) -> dict[str, Any]:
    """Share of the lost norm that each patch brings back."""
    import pandas as pd

    sweep, rows = Sweep(bench), list(tokens_of(bench).values())
    names = [f"blocks.{layer}.{site}" for layer in range(bench.outliers.detect_layer + 1) for site in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "attn.hook_z", "mlp.hook_post")]  # fmt: skip
    with sweep.watching():
        _, cache = bench.model.run_with_cache(bench.pixels, names_filter=lambda name: name in names)
        clean = sweep.seen
        with bench.model.intervened(ZeroNeurons(bench.neurons)):
            bench.model(bench.pixels)
            corrupted = sweep.seen
            assert clean is not None and corrupted is not None

            def patched(site: str, cells: list[tuple[int, int]], setter: Any) -> list[Interval]:
                index = pd.DataFrame(cells, columns=["layer", "place"])
                found = generic_activation_patch(
                    bench.model, bench.pixels, cache, sweep.norm, setter, site,  # type: ignore[arg-type]
                    index_df=index, reduce="none",
                )  # fmt: skip
                back = (found.values - corrupted) / (clean - corrupted)  # type: ignore[union-attr]
                return [mean_interval(cell, config.seed) for cell in back]

            def at_tokens(activation: Tensor, index: Any, source: Tensor) -> Tensor:
                return torch.where(rows[index[1]][:, :, None], source, activation)

            def at_last_axis(activation: Tensor, index: Any, source: Tensor) -> Tensor:
                edited = activation.clone()
                edited[:, :, index[1]] = source[:, :, index[1]]
                return edited

            layers = range(bench.outliers.detect_layer + 1)
            by_token = [(layer, kind) for layer in layers for kind in range(len(KINDS))]
            heads = [(layer, head) for layer in layers for head in range(bench.model.cfg.n_heads)]
            random = bench.random()
            units = list(bench.neurons) + list(random)[: config.n_random * len(random.layers)]
            return {
                **{site: list(zip(by_token, patched(site, by_token, at_tokens), strict=True)) for site in (*config.beside, "mlp_out")},
                "heads": list(zip(heads, patched("z", heads, at_last_axis), strict=True)),
                "neurons": list(zip(units, patched("post", units, at_last_axis), strict=True)),
            }  # fmt: skip


def draw(bench: Bench, found: dict[str, Any]) -> Figure:
    """A picture a site, one of the heads, and the neurons."""
    sites = [site for site in found if site != "neurons"]
    figure, axes = panels(1, len(sites) + 1, 2.1)
    for axis, site in zip(axes[0], sites, strict=False):
        cells = found[site]
        width = 1 + max(place for (_, place), _ in cells)
        values = torch.tensor([value.estimate for _, value in cells]).view(-1, width)
        picture = axis.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto", origin="lower")
        by_head = site == "heads"
        labels = range(width) if by_head else KINDS
        axis.set(title=site.replace("_", " "), xticks=range(width))
        axis.set_xticklabels(
            labels, rotation=0 if by_head else 40, ha="center" if by_head else "right"
        )
    axes[0, 0].set_ylabel("block")
    figure.colorbar(picture, ax=axes[0, -2], label="norm brought back")
    shown = {f"{layer}:{n}{'' if (layer, n) in set(bench.neurons) else ' random'}": value for (layer, n), value in found["neurons"][:16]}  # fmt: skip
    bars(axes[0, -1], shown, BLUE)
    axes[0, -1].set_title("single neurons")
    axes[0, -1].tick_params(axis="y", labelsize=5)
    return figure


def analyse(config: Config) -> Findings:
    """All sweeps on images that have outliers."""
    whole = config.bench
    bench = whole.part(whole.is_outlier.any(dim=1)).part(slice(0, config.n_images))
    found = sweeps(config, bench)
    best = {site: max(found[site], key=lambda cell: cell[1].estimate) for site in found}
    mlp, head, neuron = best["mlp_out"], best["heads"], best["neurons"]
    mine = set(bench.neurons)
    others = max(
        (value for pair, value in found["neurons"] if pair not in mine), key=lambda v: v.estimate
    )
    elsewhere = max(
        (value for (_, kind), value in found["mlp_out"] if kind), key=lambda v: v.estimate
    )
    headline = (
        f"MLP output of block {mlp[0][0]} at {KINDS[mlp[0][1]]} brings back {mlp[1]} of the norm; best head "
        f"{head[1]}, best neuron {neuron[0][0]}:{neuron[0][1]} {neuron[1]}, best random neuron {others}"
    )
    words = (
        f"Register neurons zeroed, one activation of the intact run put back ({len(bench.pixels)} images): the "
        f"output of the MLP of block {mlp[0][0]} at {KINDS[mlp[0][1]]} alone brings back {mlp[1]} of the norm "
        f"that was lost; at [CLS] or other patches no MLP output brings back more than {elsewhere}, no head "
        f"more than {head[1]}. The best single neuron is {neuron[0][0]}:{neuron[0][1]} with {neuron[1]}; the "
        f"best random one brings back {others}."
    )
    numbers = {site: [{"layer": a, "place": b, "back": value} for (a, b), value in cells] for site, cells in found.items()}  # fmt: skip
    numbers |= {
        "kinds_of_tokens": list(KINDS),
        "best": {site: list(cell[0]) for site, cell in best.items()},
    }
    return Findings(headline, words, numbers, {"figure": draw(bench, found)}, bench.facts)


if __name__ == "__main__":
    main(globals())
