"""Where outliers sit: on patches like their neighbours, or at fixed places?

Paper and place: arXiv 2309.16588 (Darcet et al.), Fig. 5a.
Question: is the patch embedding of an outlier more like those of its four neighbours than other patches'
are, and do outliers sit at the same places in different images?
Command: python -m analyses.paper.darcet_similarity --out OUT
Runtime: about 5 s on one CPU core.
Expect: on the planted ViT outliers are among the flattest patches of their image (below a third of them
in spread of pixels), and their places change with the image.
In the paper: DINOv2-g: outliers' cosine to their neighbours is near 1, far above other patches' (figure).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analyses._bench import Bench, BenchConfig, mean_where
from analyses._figures import GREY, RED, panels, token_map
from analyses._run import Findings, main
from analyses.paper.darcet_probes import pixel_targets
from ttreg_interp.discovery.priors import content_similarity
from ttreg_interp.metrics.intervals import mean_interval, paired_difference


@dataclass(frozen=True)
class Config(BenchConfig):
    """Content and place of outliers."""


def rank_of_outliers(bench: Bench, values: Float[Tensor, "image patch"]) -> Float[Tensor, " image"]:
    """Mean share of an image's patches that are below an outlier."""
    below = (values[:, None, :] < values[:, :, None]).float().mean(dim=2)
    return mean_where(below, bench.is_outlier)


def analyse(config: Config) -> Findings:
    """Similarity to neighbours, flatness, places."""
    bench, priors = config.bench, config.bench.outliers.priors
    similar = torch.cat(
        [content_similarity(bench.model, b) for b in bench.pixels.split(config.batch_size)]
    )
    spread = pixel_targets(bench).std(dim=2)
    some = bench.is_outlier.any(dim=1) & ~bench.is_outlier.all(dim=1)
    here, elsewhere = (
        mean_where(similar[some], m[some]) for m in (bench.is_outlier, ~bench.is_outlier)
    )
    numbers = {
        "similarity_at_outliers": mean_interval(here, config.seed),
        "similarity_elsewhere": mean_interval(elsewhere, config.seed),
        "difference": paired_difference(here, elsewhere, config.seed),
        "rank_by_similarity": mean_interval(rank_of_outliers(bench, similar), config.seed),
        "rank_by_pixel_spread": mean_interval(rank_of_outliers(bench, spread), config.seed),
        "priors": priors.to_dict(),
    }
    figure, axes = panels(1, 2, 2.0, 5.4)
    bins = torch.linspace(float(similar.min()), 1.0, 30).tolist()
    for mask, color, label in (
        (~bench.is_outlier, GREY, "other patches"),
        (bench.is_outlier, RED, "outliers"),
    ):
        axes[0, 0].hist(
            similar[mask].tolist(), bins, density=True, color=color, alpha=0.6, label=label
        )
    axes[0, 0].set(xlabel="cosine to the four neighbours", ylabel="density")
    axes[0, 0].legend()
    counts = bench.is_outlier.float().mean(dim=0)
    picture = token_map(axes[0, 1], bench.layout(), counts, cmap="cividis", vmin=0)
    figure.colorbar(picture, ax=axes[0, 1], label="share of images")
    axes[0, 1].set_title("where outliers sit")
    headline = (
        f"cosine to neighbours {numbers['similarity_at_outliers']} at outliers, "
        f"{numbers['similarity_elsewhere']} elsewhere; same place in another image with chance "
        f"{priors.position_repeat:.2f} (anywhere: {priors.position_chance:.2f})"
    )
    words = (
        f"The patch embedding of an outlier has cosine {numbers['similarity_at_outliers']} to its four "
        f"neighbours', that of other patches {numbers['similarity_elsewhere']} (paired difference "
        f"{numbers['difference']}, {len(here)} images with outliers). Among the patches of its image an "
        f"outlier has more spread of pixels than {numbers['rank_by_pixel_spread']} of them. An outlier's "
        f"place holds one in another image too with chance {priors.position_repeat:.2f}; anywhere it would "
        f"be {priors.position_chance:.2f}. What places them: {priors.kind}."
    )
    return Findings(headline, words, numbers, {"figure": figure}, bench.facts)


if __name__ == "__main__":
    main(globals())
