"""What does a scoring pass cost, in time and memory, against the plain forward pass?

Paper and place: arXiv 2506.08010, Algorithm 1, of which the authors' loop holds every activation.
Question: time of the scoring pass over that of the source's own forward on the same batches; bytes
retained an image; whether the peak memory grows with the number of images.
Command: MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483648 OMP_NUM_THREADS=1 \
    OMP_WAIT_POLICY=PASSIVE python -m analyses.discovery_cost --out runs/discovery_cost
    (without the first two, glibc gives every large tensor back to the system and page faults are
    what is timed: 48,000 in a plain batch, 109,000 in that of the bare hooked model)
Runtime: about 5 min on one CPU core.
Expect: a time ratio of at most 1.05 where outliers are detected at the last layer, less where they
are found earlier; at most 7 MiB an image; a flat peak.
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
from ttreg_interp.discovery.priors import CONTENT_IMAGES
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
    rounds: int = 30
    """Rounds, each timing the plain pass and both scoring passes on one batch."""
    many: int = 1000
    """Images of the longer run whose peak memory is compared with that of 100."""


def timed(passes: dict[str, Callable[[int], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every pass in every round, the order turned each time."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(rounds + 1):
        names = list(passes) if number % 2 else list(passes)[::-1]
        for name in names:
            start = time.process_time()
            passes[name](number)
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


def searched(model: HookedViT, pixels: Tensor, detect_layer: int | None) -> Observer:
    """What a scoring pass runs, its outliers detected at the last layer or where they are found."""
    run = ScoringRun.of(model, pixels, FindConfig(detect_layer=detect_layer))
    detection = run.start(Shard()).detection
    return Observer(model, detection, run.layers(detection.detect_layer))


def main(config: Config) -> None:
    model = HookedViT.wrap(planted_vit(size=config.size, image_size=224).module)
    pixels = photograph_tensor(224)
    # numbered as in the bulk of a long run: contents are compared in the first images only
    batches = [
        Batch(part, CONTENT_IMAGES + torch.arange(8) + 8 * i)
        for i, part in enumerate(pixels.split(8))
    ]
    worst, found = searched(model, pixels, -1), searched(model, pixels, None)
    sums, others = ExactSums(), ExactSums()

    def plain(number: int) -> None:
        with torch.no_grad():
            model.source(batches[number % 2].pixels)

    passes = {
        "plain": plain,
        "to the last layer": lambda number: add_batch(sums, worst, batches[number % 2], seed=0),
        "to the found layer": lambda number: add_batch(others, found, batches[number % 2], seed=0),
    }
    seconds = timed(passes, config.rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    outliers = sums.whole("n_outliers") / sums.whole("n_images")
    peaks = []
    for n_images in (100, config.many):
        for number in range(n_images // 8):
            images = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(number))
            add_batch(sums, worst, Batch(images, torch.arange(8)), seed=0)
        peaks.append(peak_mib())
    result = {
        "time_over_plain": {name: value / medians["plain"] for name, value in medians.items()},
        "found_layer": found.detection.detect_layer,
        "outliers_per_image": outliers,
        "retained_mib_per_image": retained_mib(model, pixels[:8], worst.layers),
        "peak_mib": dict(zip(("100", str(config.many)), peaks, strict=True)),
    }
    config.out.mkdir(parents=True, exist_ok=True)
    everything = result | {"cpu_seconds": seconds}
    (config.out / "result.json").write_text(json.dumps(everything, indent=1))
    print(json.dumps(result))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
