"""What tokens hold: linear probes from one token at a time.

Paper and place: arXiv 2506.08010, Table 1; arXiv 2309.16588, Table 1.
Question: which image is a crop of, told from one token of the last block: [CLS], the central patch, an
outlier, a random other patch, the register?
Command: python -m analyses.paper.tab01_probes --out OUT
Runtime: about 40 s on one CPU core.
Expect: on the planted ViT the register tells as much as [CLS], although it is the same vector in all
images but for a ten-thousandth: a probe on standardised features reads what no head of the model uses.
In the paper: DINOv2 ViT-L/14, IN1k: [CLS] 85.6, central patch 73.3, outlier 84.5, trained register 83.1,
test-time register 84.5.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from analyses._bench import Bench, BenchConfig
from analyses._figures import COLUMN, bars, panels
from analyses._run import Findings, main
from analyses.paper._crops import CLS, REGISTER, crops, last_tokens, probed, register_tokens
from ttreg_interp.interventions import TestTimeRegister
from ttreg_interp.metrics.intervals import Interval, mean_interval
from ttreg_interp.metrics.similarity import mean_cosine_to_others

CENTRE, OUTLIER, OTHER, TRAINED = "central patch", "outlier", "another patch", "trained register"


@dataclass(frozen=True)
class Config(BenchConfig):
    """Probes on crops; two thirds of each image's crops train, the others test."""

    n_images: int = 16
    """So many images are the classes."""
    n_each: int = 9
    """Crops of every image."""


def tokens(bench: Bench, pixels: Tensor) -> dict[str, Float[Tensor, "crop d_model"]]:
    """One vector a crop, by kind of token."""
    layout = bench.layout()
    resid = last_tokens(bench, pixels)
    patches, rows = resid[:, layout.patches], torch.arange(len(pixels))
    norms = replace(bench, pixels=pixels).norms_at(bench.outliers.detect_layer)
    strongest = norms.argmax(dim=1)
    order = torch.rand(norms.shape, generator=torch.Generator().manual_seed(bench.seed))
    other = order.masked_fill(norms > bench.threshold, -1).argmax(dim=1)
    found = {
        **({CLS: resid[:, 0]} if layout.n_cls else {}),
        CENTRE: patches[:, (layout.height // 2) * layout.width + layout.width // 2],
        OUTLIER: patches[rows, strongest],
        OTHER: patches[rows, other],
    }
    if layout.n_trained_registers:
        found[TRAINED] = resid[:, layout.trained_registers].mean(dim=1)
    register = register_tokens(bench, pixels, TestTimeRegister(bench.neurons))
    found[REGISTER] = register[REGISTER]
    return found | ({f"{CLS} with it": register[CLS]} if layout.n_cls else {})


def normed(bench: Bench, values: Float[Tensor, "crop d_model"]) -> Float[Tensor, "crop d_model"]:
    """After the final norm, as readers see tokens; as they are where it reads no tokens."""
    if bench.model.parts.ln_final is None or bench.model.parts.norm_after_pool:
        return torch.nn.functional.layer_norm(values, values.shape[1:])
    return bench.model.ln_final(values).detach()


def analyse(config: Config) -> Findings:
    """A probe for every kind of token."""
    bench = config.bench
    views = crops(bench, config.n_images, config.n_each)
    found = tokens(bench, views.pixels)
    accuracy: dict[str, Interval] = {
        name: probed(views, normed(bench, values)) for name, values in found.items()
    }
    alike = {
        name: mean_interval(mean_cosine_to_others(normed(bench, values)), config.seed)
        for name, values in found.items()
    }
    n_images = int(views.labels.max()) + 1
    figure, axes = panels(1, 1, 0.22 * len(accuracy) + 0.6, COLUMN)
    bars(axes[0, 0], accuracy)
    axes[0, 0].axvline(1 / n_images, color="k", ls=":", lw=0.8)
    axes[0, 0].set(xlabel="accuracy (dotted: chance)", xlim=(0, 1.02))
    headline = "; ".join(f"{name} {value}" for name, value in accuracy.items())
    words = (
        f"Which of {n_images} images a crop is of, by a linear probe on one token after the final norm "
        f"(chance {1 / n_images:.3f}; {config.n_each} crops an image, a third of them to test): {headline}. "
        "This is no ImageNet accuracy; it compares tokens with each other. Features are standardised, so "
        "that a probe may read what hardly varies; between crops the tokens have cosine "
        + ", ".join(f"{name} {value}" for name, value in alike.items())
        + "."
    )
    numbers = {"accuracy": accuracy, "cosine_between_crops": alike, "chance": 1 / n_images}
    return Findings(headline, words, numbers, {"figure": figure}, bench.facts)


if __name__ == "__main__":
    main(globals())
