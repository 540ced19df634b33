"""Do outliers know where they are, and what they saw?

Paper and place: arXiv 2309.16588 (Darcet et al.), section 2.2 and Table (b), (c).
Question: can a linear probe tell a patch's place, and its pixels, from its token in the last block: at
outliers, at other patches, and at the outliers' places once a register has taken them over?
Command: python -m analyses.paper.darcet_probes --out OUT
Runtime: about 25 s on one CPU core.
Expect: on the planted ViT both are lost at outliers, and are back at the same places under a register.
In the paper: DINOv2-g, place: top-1 41.7 at normal patches, 22.8 at outliers, distance .79 and 5.09;
pixels: L2 error 18.38 and 25.23.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import unfold

from analyses._bench import Bench, BenchConfig, mean_where
from analyses._figures import BLUE, bars, panels
from analyses._run import Findings, main
from analyses.paper._crops import last_tokens
from analyses.paper.tab01_probes import normed
from ttreg_interp.errors import DataError
from ttreg_interp.interventions import Empty, Intervention, TestTimeRegister
from ttreg_interp.metrics.classification import Labelled
from ttreg_interp.metrics.intervals import Interval, mean_interval
from ttreg_interp.metrics.probes import LogisticProbe, linear_probe

PENALTY = 1e-2
"""Of both probes, in units of a standardised feature."""


@dataclass(frozen=True)
class Config(BenchConfig):
    """Half of the images train the probes, the others test them."""


def pixel_targets(bench: Bench) -> Float[Tensor, "image patch pixel"]:
    """The pixels of every patch."""
    size = bench.model.parts.patch_size
    return unfold(bench.pixels, size, stride=size).transpose(1, 2)


def ridge(
    train: Float[Tensor, "token d_model"],
    target: Float[Tensor, "token output"],
    test: Float[Tensor, "token d_model"],
) -> Float[Tensor, "token output"]:
    """Predictions of a ridge regression on standardised features."""
    spread, centre = torch.std_mean(train, dim=0)
    scaled, offset = (train - centre) / spread.clamp_min(1e-6), target.mean(dim=0)
    gram = scaled.T @ scaled / len(scaled) + PENALTY * torch.eye(scaled.shape[1])
    weight = torch.linalg.solve(gram, scaled.T @ (target - offset) / len(scaled))
    return (test - centre) / spread.clamp_min(1e-6) @ weight + offset


def scores(bench: Bench, arm: Intervention) -> dict[str, Float[Tensor, "image patch"]]:
    """For every test patch: place right, distance in patches, and error of the pixels."""
    tokens = last_tokens(bench, bench.pixels, arm)[:, bench.layout(arm).patches]
    features = normed(bench, tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
    half, layout = len(features) // 2, bench.layout()
    n_test = len(features) - half
    train, test = features[:half].flatten(0, 1), features[half:].flatten(0, 1)
    place = torch.arange(layout.n_patches)
    probe = LogisticProbe(grid=(PENALTY,), seeds=(0,), iterations=40)
    right = linear_probe(
        Labelled(train, place.repeat(half)), Labelled(test, place.repeat(n_test)), probe
    )
    where = torch.stack((place // layout.width, place % layout.width), dim=1).float()
    guess = ridge(train, where.repeat(half, 1), test)
    pixels = pixel_targets(bench)
    drawn = ridge(train, pixels[:half].flatten(0, 1), test)
    error = drawn - pixels[half:].flatten(0, 1)
    found = {
        "place": right.correct[0].float(),
        "distance": (guess - where.repeat(n_test, 1)).norm(dim=1),
        "pixels": error.square().mean(dim=1).sqrt(),
    }
    return {name: values.view(n_test, layout.n_patches) for name, values in found.items()}


def at(
    found: Mapping[str, Float[Tensor, "image patch"]],
    chosen: Bool[Tensor, "image patch"],
    seed: int,
) -> dict[str, Interval]:
    """Means over the chosen patches, image by image."""
    return {name: mean_interval(mean_where(values, chosen), seed) for name, values in found.items()}


def analyse(config: Config) -> Findings:
    """Probes before and after."""
    bench = config.bench
    half = len(bench.pixels) // 2
    outlier = bench.is_outlier[half:]
    if int(outlier.any(dim=1).sum()) < 2:
        raise DataError("Fewer than two test images have outliers; give more images.")
    before, after = scores(bench, Empty()), scores(bench, TestTimeRegister(bench.neurons))
    numbers = {
        "outliers": at(before, outlier, config.seed),
        "other patches": at(before, ~outlier, config.seed),
        "their places, with a register": at(after, outlier, config.seed),
        "other patches, with a register": at(after, ~outlier, config.seed),
    }
    figure, axes = panels(1, 3, 1.4)
    titles = {
        "place": "place, top-1",
        "distance": "distance, patches",
        "pixels": "pixels, rms error",
    }
    for axis, (name, title) in zip(axes[0], titles.items(), strict=True):
        bars(axis, {kind: values[name] for kind, values in numbers.items()}, BLUE)
        axis.set_title(title)
    for axis in axes[0, 1:]:
        axis.set_yticklabels([])
    out, other, back = list(numbers.values())[:3]
    headline = (
        f"place top-1: outliers {out['place']}, others {other['place']}, outliers' places with a register "
        f"{back['place']}; pixel error {out['pixels']}, {other['pixels']}, {back['pixels']}"
    )
    words = (
        f"From its token in the last block a linear probe finds a patch's place among "
        f"{outlier.shape[1]} in {out['place']} of the outliers and {other['place']} of the other patches, "
        f"and {back['place']} at the outliers' places under a register; mean distance of a regression "
        f"{out['distance']}, {other['distance']} and {back['distance']} patches; root mean square error of "
        f"the pixels {out['pixels']}, {other['pixels']} and {back['pixels']} (outliers may sit on flat "
        f"patches, whose pixels are easier). {half} images to train, {len(outlier)} to test."
    )
    return Findings(headline, words, numbers, {"figure": figure}, bench.facts)


if __name__ == "__main__":
    main(globals())
