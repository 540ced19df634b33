"""Probes: what [CLS] holds for classes and patches for segmentation and depth, with a register.

Paper and place: arXiv 2506.08010, Tables 2 and 13 (13 gives 2 with intervals).
Question: does a linear layer read more off the features once the outliers are gone?
Command: python -m analyses.paper.tab02_probes --out OUT
Runtime: about 60 s on one CPU core.
Expect: on the planted ViT, crops of photographs and photographs with a disc pasted in: no arm differs by
more than a few images leave open, since outliers stand on few patches and a linear layer can ignore them.
In the paper: DINOv2 ViT-L/14, test-time register: ImageNet top-1 86.36, 86.38; ADE20K mIoU 48.27, 49.13;
NYU rmse .3876, .3774.
"""

from dataclasses import dataclass
from typing import Any

from analyses._bench import BenchConfig
from analyses._run import Findings, main
from analyses.paper._composites import composites, measured, told
from analyses.paper._named import crops
from ttreg_interp.data.annotated import Annotated, Depth, Mask
from ttreg_interp.data.open import open_data
from ttreg_interp.evaluations.arms import standard_arms
from ttreg_interp.evaluations.dense import DepthProbe, SegmentationProbe
from ttreg_interp.evaluations.probes import LinearProbe
from ttreg_interp.metrics.dense_probes import DenseProbe

PREFACE = (
    "Cross-validated: two parts, each the other's training images. Where no sets are named, classes "
    "are those of crops (which photograph?), masks and depths those of composites (where is the disc?)."
)


@dataclass(frozen=True)
class Config(BenchConfig):
    """Three probes on the same arms."""

    classes: str = ""
    """FORMAT:PATH#SPLIT of images with classes; absent: crops of photographs."""
    masks: str = ""
    """The same with masks; absent: photographs with a disc pasted in."""
    depths: str = ""
    """The same with depths; absent: the same photographs, the disc nearer."""
    count: int = 24
    """So many images of each set at most, twice as many with classes; `limit` is for the images of the
    outliers."""
    seeds: tuple[int, ...] = (0,)
    """Of the probes."""
    epochs: int = 10
    """Of the probes on patches."""


def analyse(config: Config) -> Findings:
    """Every arm on the same images, protocol by protocol."""
    bench, seeds = config.bench, config.seeds
    arms = standard_arms(
        bench.model, bench.neurons, ["register", "random"], n_draws=2, seed=config.seed
    )
    few = {
        "epochs": config.epochs,
        "seeds": seeds,
    }  # few images: small steps would end at the start
    masks = DenseProbe(learning_rate=1e-2, batch_size=4, **few)
    depths = DenseProbe(learning_rate=2e-2, batch_size=2, **few)
    protocols = (
        (LinearProbe(folds=2, seeds=seeds, grid=(1.0, 0.1, 0.01)), config.classes, int),
        (SegmentationProbe(probe=masks, folds=2), config.masks, Mask),
        (DepthProbe(probe=depths, folds=2), config.depths, Depth),
    )
    results = [
        measured(config, protocol, bench.model, _open(config, data, kind), arms)
        for protocol, data, kind in protocols
    ]
    return told(bench, *results, preface=PREFACE)


def _open(config: Config, data: str, kind: type) -> Annotated[Any]:
    count = 2 * config.count if kind is int else config.count
    if data:
        return open_data(data).take(count, config.seed)
    return crops(count) if kind is int else composites(kind, count)


if __name__ == "__main__":
    main(globals())
