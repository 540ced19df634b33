"""Attention and norm maps before and after, by number of registers and by initial value.

Paper and place: arXiv 2506.08010, Fig. 5, 12 and 13.
Question: does the attention map of [CLS] lose its spikes, and does it matter how many registers there
are or what they start from?
Command: python -m analyses.paper.fig05_maps --out OUT
Runtime: about 15 s on one CPU core.
Expect: on the planted ViT the largest attention to one patch falls from about .6 to below .001, with the
same map (correlation above 0.9) for every number and start.
In the paper: maps only, no number.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analyses._bench import Bench, BenchConfig
from analyses._figures import sheet
from analyses._run import Findings, main
from analyses.paper.fig04_maps import correlation
from ttreg_interp.hooked import TokenLayout, load
from ttreg_interp.interventions import Empty, Intervention, TestTimeRegister
from ttreg_interp.metrics.intervals import mean_interval
from ttreg_interp.report.attention_view import write_attention_view

AFTER = "1 register"


@dataclass(frozen=True)
class Config(BenchConfig):
    """Last-block maps of a few images."""

    n_shown: int = 4
    """Images in the figures."""
    trained: str = ""
    """Spec of a model with trained registers, whose map is drawn beside the others."""
    views: bool = True
    """Write the last block's attention, head by head, as pages to point at (CircuitsVis)."""


def arms(bench: Bench) -> dict[str, Intervention]:
    """Before, after, by number, by start."""
    neurons = bench.neurons
    return {
        "intact": Empty(),
        AFTER: TestTimeRegister(neurons),
        **{f"{n} registers": TestTimeRegister(neurons, n) for n in (2, 4)},
        "start: Gaussian": TestTimeRegister(neurons, init="patch_gaussian"),
        "start: mean": TestTimeRegister(neurons, init="patch_mean"),
    }


def attention_map(
    bench: Bench, arm: Intervention | None = None
) -> tuple[Float[Tensor, "image patch"], Float[Tensor, "image patch"]]:
    """Attention of [CLS] to patches in the last block, mean over heads; and norms."""
    patches = bench.layout(arm).patches
    found = bench.collect(
        {
            "attention": (
                f"blocks.{bench.last}.attn.hook_pattern",
                lambda rows: bench.reader(rows)[..., patches].mean(dim=1),
            ),
            "norm": (bench.resid, lambda resid: resid[:, patches].norm(dim=-1)),
        },
        arm,
    )
    return found["attention"], found["norm"]


def trained_map(config: Config, bench: Bench) -> tuple[TokenLayout, Float[Tensor, "image patch"]]:
    """The same of a model with trained registers."""
    other = load(config.trained, image_size=tuple(bench.pixels.shape[-2:]))
    layout, patches = other.layout(), other.layout().patches
    rows: list[Tensor] = []
    hook = (
        f"blocks.{other.cfg.n_layers - 1}.attn.hook_pattern",
        lambda pattern, hook: rows.append(
            pattern[:, :, 0, patches].mean(dim=1)
        ),  # all such have [CLS]
    )
    with torch.no_grad():
        other.run_with_hooks(bench.pixels[: config.n_shown], fwd_hooks=[hook])
    return layout, rows[0]


@torch.no_grad()
def write_views(config: Config, bench: Bench, chosen: dict[str, Intervention]) -> None:
    """Pages of the first image."""
    for name, arm in chosen.items():
        with bench.model.intervened(arm):
            _, cache = bench.model.run_with_cache(bench.pixels[:1])
        pattern = cache["pattern", bench.last][0]
        file = config.out / f"attention_{name.replace(' ', '_')}.html"
        title = f"Attention in block {bench.last}, {name}"
        write_attention_view(pattern, cache.layout, file, title=title)


def analyse(config: Config) -> Findings:
    """Maps of all arms."""
    bench = config.bench
    chosen = arms(bench)
    maps = {name: attention_map(bench, arm) for name, arm in chosen.items()}
    numbers = {}
    for name, (attention, norms) in maps.items():
        shape = attention / attention.sum(dim=1, keepdim=True)
        entropy = torch.special.entr(shape).sum(dim=1).exp() / shape.shape[1]
        numbers[name] = {
            "largest_attention": mean_interval(attention.amax(dim=1), config.seed),
            "effective_share_of_patches": mean_interval(entropy, config.seed),
            "max_over_median_norm": mean_interval(
                norms.amax(1) / norms.median(1).values, config.seed
            ),
            "correlation_with_1_register": mean_interval(
                correlation(attention, maps[AFTER][0]), config.seed
            ),
        }
    columns = {name: (bench.layout(), attention) for name, (attention, _) in maps.items()}
    if config.trained:
        columns["trained registers"] = trained_map(config, bench)
    if config.views:
        write_views(config, bench, {name: chosen[name] for name in ("intact", AFTER)})
    images = list(bench.pixels[: config.n_shown])
    figures = {
        "figure": sheet(images, columns, "magma"),
        "norms": sheet(images, {n: (bench.layout(), norms) for n, (_, norms) in maps.items()}),
    }
    before, after = numbers["intact"], numbers[AFTER]
    like = [
        n["correlation_with_1_register"].estimate
        for k, n in numbers.items()
        if k not in ("intact", AFTER)
    ]
    headline = (
        f"largest attention to one patch {before['largest_attention']} before, "
        f"{after['largest_attention']} after; other numbers and starts give the same map "
        f"(correlation {min(like):.2f} or more)"
    )
    words = (
        f"In the last block the patch that draws most gets {before['largest_attention']} of the attention "
        f"of [CLS] before and {after['largest_attention']} after. The map is spread as if over "
        f"{before['effective_share_of_patches']} of the patches before and "
        f"{after['effective_share_of_patches']} after (exp entropy). The maps with 2 or 4 registers, or "
        f"with a register that starts from noise or the mean patch, correlate {min(like):.3f} or more "
        f"with that of one register. Every map has its own colour scale. {len(bench.pixels)} images."
    )
    return Findings(headline, words, numbers, figures, bench.facts)


if __name__ == "__main__":
    main(globals())
