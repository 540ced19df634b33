"""What does a scoring pass cost, in time and memory, against the plain forward pass?

Paper and place: arXiv 2506.08010, Algorithm 1, of which the authors' loop holds every activation.
Question: time of the scoring pass over that of the source's own forward on the same batches; bytes
retained an image; whether the peak memory grows with the number of images.
Command: python -m analyses.discovery_cost --out runs/discovery_cost
Runtime: about 5 min on one CPU core.
Expect: a time ratio of at most 1.05, at most 7 MiB an image, a flat peak.
"""

import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from torch import Tensor

from ttreg_interp.discovery import FindConfig, Shard
from ttreg_interp.discovery.capture import mlp_inputs
from ttreg_interp.discovery.exact import ExactSums
from ttreg_interp.discovery.observe import Observer
from ttreg_interp.discovery.scores import add_batch
from ttreg_interp.discovery.scoring import ScoringRun
from ttreg_interp.discovery.stream import Batch
from ttreg_interp.hooked import HookedViT
from ttreg_interp.testbed.photographs import photograph_tensor
from ttreg_interp.testbed.planted import planted_vit


@dataclass(frozen=True)
class Config:
    """A planted ViT-B/16 and 16 photographs in batches of 8."""

    out: Path
    """Folder for result.json."""
    size: str = "base"
    """Named size of the planted model."""
    rounds: int = 15
    """Interleaved rounds, each timing both passes on both batches."""
    many: int = 1000
    """Images of the longer run whose peak memory is compared with that of 100."""


def medians(passes: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every pass in every round, the order turned each time."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(rounds + 1):
        names = list(passes) if number % 2 else list(passes)[::-1]
        for name in names:
            start = time.process_time()
            passes[name]()
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    return seconds


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def retained_mib(model: HookedViT, pixels: Tensor, layers: range) -> float:
    """MLP inputs and the residual stream of the detection layer, per image."""
    with torch.no_grad(), mlp_inputs(model, layers) as inputs:
        resid = model(pixels, stop_at_layer=layers.stop)
    held = [*inputs.values(), resid]
    return sum(value.numel() * value.element_size() for value in held) / len(pixels) / 2**20


def main(config: Config) -> None:
    model = HookedViT.wrap(planted_vit(size=config.size, image_size=224).module)
    pixels = photograph_tensor(224)
    run = ScoringRun.of(model, pixels, FindConfig(held_out=0.0, detect_layer=-1))
    state = run.start(Shard())
    observer = Observer(model, state.detection, run.layers(state.detection.detect_layer))
    batches = list(run.batches())
    sums = ExactSums()

    def plain() -> None:
        with torch.no_grad():
            for batch in batches:
                model.source(batch.pixels)

    def scoring() -> None:
        for batch in batches:
            add_batch(sums, observer, batch, seed=0)

    seconds = medians({"plain": plain, "scoring": scoring}, config.rounds)
    medians_ = {name: statistics.median(values) for name, values in seconds.items()}
    peaks = []
    for n_images in (100, config.many):
        for number in range(n_images // 8):
            images = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(number))
            add_batch(sums, observer, Batch(images, torch.arange(8)), seed=0)
        peaks.append(peak_mib())
    result = {
        "time_ratio": medians_["scoring"] / medians_["plain"],
        "cpu_seconds": seconds,
        "retained_mib_per_image": retained_mib(model, pixels[:8], observer.layers),
        "outliers_per_image": sums.whole("n_outliers") / sums.whole("n_images"),
        "peak_mib": dict(zip(("100", str(config.many)), peaks, strict=True)),
    }
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / "result.json").write_text(json.dumps(result, indent=1))
    print(json.dumps({key: value for key, value in result.items() if key != "cpu_seconds"}))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
