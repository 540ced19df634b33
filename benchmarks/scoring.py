"""The scoring pass of discovery against the plain forward, and end to end against a loop over images.

Question: what does the scoring pass cost beside the plain forward on pixels that are there; and from
image files to scores, beside a loop that does what the authors describe, in the same kernels?
Command: MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=2147483648 OMP_WAIT_POLICY=PASSIVE \
    python -m benchmarks.scoring
Runtime: about 10 min on two CPU cores.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from benchmarks.described import Loop
from benchmarks.memory import retained_mib
from benchmarks.timing import Ratio, Work, ratio
from ttreg_interp.data import images
from ttreg_interp.discovery import FindConfig, Shard
from ttreg_interp.discovery.exact import ExactSums
from ttreg_interp.discovery.observe import Observation, Observer
from ttreg_interp.discovery.priors import CONTENT_IMAGES
from ttreg_interp.discovery.scores import GROUP, add_group, read_scores
from ttreg_interp.discovery.scoring import ScoringRun
from ttreg_interp.discovery.stream import Batch
from ttreg_interp.hooked import HookedViT, load
from ttreg_interp.hooked.fast_cpu import Precision
from ttreg_interp.testbed import photograph_tensor, planted_vit
from ttreg_interp.testbed.photographs import photographs

FILTER = (0.5, 0.5)
"""The sparsity filter of the authors' notebook: below .5 on half of the tokens."""


def scoring(size: str, image_size: int) -> dict[str, Work]:
    """Arms over 4 batches of 8 photographs, whose pixels are there; the first one is the base."""
    vit = planted_vit(size=size, image_size=image_size)
    model, pixels = HookedViT.wrap(vit.module), photograph_tensor(image_size)
    halves = pixels.split(8)
    # numbered as in the bulk of a long run: contents are compared in the first images only
    batches = [Batch(halves[i % 2], CONTENT_IMAGES + 8 * i + torch.arange(8)) for i in range(GROUP)]
    last, found = (observer_of(model, pixels[:8], layer) for layer in (-1, None))
    sums, others = ExactSums(), ExactSums()
    return {
        "plain forward": lambda: [model.source(batch.pixels) for batch in batches],
        "scoring, outliers at the last layer": lambda: add_group(sums, last, batches, seed=0),
        "scoring, outliers where they are found": lambda: add_group(others, found, batches, seed=0),
    }


def observer_of(model: HookedViT, pixels: Tensor, detect_layer: int | None) -> Observer:
    """What a scoring pass runs, its outliers detected at that layer or where they are found."""
    run = ScoringRun.of(model, pixels, FindConfig(detect_layer=detect_layer))
    return run.observer(run.start(Shard()).detection)


def held(seen: Observation) -> float:
    """MiB an image that are retained while a batch is scored."""
    return retained_mib([*seen.inputs.values(), seen.resid]) / len(seen.outliers)


@dataclass(frozen=True)
class Config:
    """What to time, end to end."""

    out: Path = Path("benchmarks/results")
    """Folder for MACHINE-end-to-end.json."""
    size: str = "base"
    """Named size of the planted model."""
    images: int = 24
    """JPEGs, 500 by 375 pixels."""
    rounds: int = 5
    """Timed rounds of every arm."""
    threads: int = 1
    """CPU threads of a forward pass."""
    workers: int = 1
    """Processes that decode beside it."""
    fast_cpu: Precision | None = None
    """Other kernels for our forward pass; the loop keeps torch's own."""


def save_jpegs(folder: Path, n_images: int) -> list[Path]:
    """Photographs of about the size of ImageNet's."""
    scenes = list(photographs(500).values())
    files = [folder / f"{number:04d}.jpg" for number in range(n_images)]
    for number, file in enumerate(files):
        scene = scenes[number % len(scenes)].rotate(90 * (number // len(scenes)))
        scene.crop((0, 60, 500, 435)).save(file, quality=90)
    return files


@dataclass(frozen=True)
class EndToEnd:
    """From files to scores, with one threshold for all arms."""

    model: HookedViT
    """Of whose neurons all layers are scored."""
    ours: HookedViT
    """The same for our arms, on the kernels that they run on."""
    files: list[Path]
    """The images."""
    threshold: float
    """Norm above which a token is an outlier."""
    workers: int
    """Processes that decode beside the forward pass."""

    @classmethod
    def of(cls, model: HookedViT, ours: HookedViT, files: list[Path], workers: int) -> "EndToEnd":
        """With the threshold that the first images ask for, at the last layer."""
        run = ScoringRun.of(model, images(files), FindConfig(detect_layer=-1, candidates="all"))
        threshold = run.start(Shard()).detection.threshold.value
        return cls(model, ours, files, threshold, workers)

    def arms(self) -> dict[str, Callable[[], Tensor]]:
        """All of them give the same scores, [layer, neuron]; the loops come first."""
        loop = Loop(self.model, self.threshold)
        return {
            "loop": lambda: loop(self.files),
            "loop, fused attention": lambda: replace(loop, keeps_attention=False)(self.files),
            "ours, decoded in the same process": self._ours(0, None),
            "ours": self._ours(self.workers, None),
            "loop, sparsity filter": lambda: replace(loop, sparsity=FILTER)(self.files),
            "ours, sparsity filter": self._ours(self.workers, FILTER),
        }

    def _ours(self, workers: int, sparsity: tuple[float, float] | None) -> Callable[[], Tensor]:
        config = FindConfig(
            semantics="reference",
            threshold_value=self.threshold,
            detect_layer=-1,
            held_out=0.0,
            sparsity=sparsity,
            workers=workers,
        )
        run = ScoringRun.of(self.ours, images(self.files), config)
        start = run.start(Shard())

        def work() -> Tensor:
            state = run.go_on(replace(start, sums=ExactSums(), complete=False), None)
            layers = run.layers(state.detection.detect_layer)
            return read_scores(self.ours, layers, state.sums).score("abs")

        return work


def elapsed(
    arms: Mapping[str, Callable[[], Any]], rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Seconds on the wall, and of all processes together, of every arm in every round, in turn."""
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    names = list(arms)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            before = _clocks()
            arms[name]()
            seconds[name].append({k: now - before[k] for k, now in _clocks().items()})
    return seconds


def _clocks() -> dict[str, float]:
    times = os.times()  # of children once they have ended, as those that decode have
    cpu = times.user + times.system + times.children_user + times.children_system
    return {"wall": time.perf_counter(), "cpu": cpu}


PAIRS = (
    ("loop", "ours"),
    ("loop, fused attention", "ours"),
    ("loop", "ours, decoded in the same process"),
    ("loop, sparsity filter", "ours, sparsity filter"),
)
"""What is divided by what."""


@torch.no_grad()
def end_to_end(config: Config, folder: Path) -> dict:
    """Seconds of every arm, the ratios, and how far scores are apart."""
    spec = f"testbed:planted/timm/{config.size}/0"
    model = load(spec)
    ours = model if config.fast_cpu is None else load(spec, fast_cpu=config.fast_cpu)
    test = EndToEnd.of(model, ours, save_jpegs(folder, config.images), config.workers)
    arms = test.arms()
    scores = {name: work() for name, work in arms.items()}
    seconds = elapsed(arms, config.rounds)
    ratios: dict[str, dict[str, Ratio]] = {
        f"{slow} / {fast}": {
            clock: ratio([t[clock] for t in seconds[slow]], [t[clock] for t in seconds[fast]])
            for clock in ("wall", "cpu")
        }
        for slow, fast in PAIRS
    }
    apart = {
        f"{slow} / {fast}": float((scores[slow] - scores[fast]).abs().max()) for slow, fast in PAIRS
    }
    return {"seconds": seconds, "ratios": ratios, "largest_difference_of_scores": apart}


def main(config: Config) -> None:
    from benchmarks.run import machine
    from ttreg_interp.provenance import versions

    torch.set_num_threads(config.threads)
    with tempfile.TemporaryDirectory() as folder:
        result = end_to_end(config, Path(folder))
    pixels = photograph_tensor(224)[:8]
    model = HookedViT.wrap(planted_vit(size=config.size, image_size=224).module)
    last = observer_of(model, pixels, -1)
    result["held_mib_per_image"] = held(last(Batch(pixels, torch.arange(8))))
    settings = {name: value for name, value in vars(config).items() if name != "out"}
    result |= {"machine": machine(), "versions": versions(), "configuration": settings}
    for pair, clocks in result["ratios"].items():
        words = ", ".join(f"{clock} {found}" for clock, found in clocks.items())
        print(f"{pair}: {words}; scores {result['largest_difference_of_scores'][pair]:.1e} apart")
    print(f"held while a batch is scored: {result['held_mib_per_image']:.2f} MiB an image")
    name = "-".join(str(result["machine"]["cpu"]).replace("(R)", "").split()).lower()
    config.out.mkdir(parents=True, exist_ok=True)
    kernels = "" if config.fast_cpu is None else f"-{config.fast_cpu}"
    file = config.out / f"{name}-end-to-end{kernels}.json"
    file.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
