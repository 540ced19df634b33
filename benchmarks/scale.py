"""Does a run over a million images stay flat in memory, survive kills, and add up from shards?

Question: memory and throughput of the scoring pass over many images; whether shards, each of them
killed once and resumed, merge to the sums and the neurons of one process, to the last bit.
Command: python -m benchmarks.scale --images 1000000 (whatever stops it, the same command goes on)
Runtime: about 20 min on one CPU core; `--images 20000` takes one.

The images are crops of photographs and the ViT is tiny: what is measured is the machinery, not the
model. Everything runs twice, in one piece and in shards.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from torch import Tensor

from ttreg_interp.data import images
from ttreg_interp.discovery import FindConfig, Shard, find_register_neurons, merge, score_shard
from ttreg_interp.discovery.checkpoint import RunState
from ttreg_interp.hooked import HookedViT
from ttreg_interp.provenance import versions
from ttreg_interp.testbed.photographs import photographs
from ttreg_interp.testbed.planted import PlantedViT, planted_vit

SIDE, SCENE = 64, 192
"""Pixels of an image, and of the photographs that it is cut from."""
FIND = FindConfig(batch_size=256, evidence=False)
"""How the neurons are found."""


@dataclass(frozen=True)
class Config:
    """How many images, in how many shards."""

    out: Path = Path("runs/scale")
    """Folder for checkpoints, notes on memory, and result.json."""
    images: int = 1_000_000
    """In the set."""
    shards: int = 2
    """Of the run that is compared with one in one piece."""
    piece: str | None = None
    """NUMBER/OF: only score this shard; what the other processes are started with."""
    kill_after: int | None = None
    """Images after which the process kills itself."""
    threads: int = 1
    """CPU threads."""


class Crops:
    """A data set of crops of photographs, each by its number; notes the memory of the process.

    Args:
        n_images: how many.
        notes: file that gets a line of JSON every so many images.
        kill_after: after so many images the process kills itself, as a machine would.
    """

    def __init__(self, n_images: int, notes: Path | None = None, kill_after: int | None = None):
        self.n_images, self.notes, self.kill_after = n_images, notes, kill_after
        self.scenes = np.stack([np.asarray(image) for image in photographs(SCENE).values()])
        self.every = max(1, n_images // 50)
        self.read, self.began = 0, time.perf_counter()

    def __len__(self) -> int:
        return self.n_images

    def __getitem__(self, number: int) -> Image.Image:
        self._note()
        place, scene = divmod(number, len(self.scenes))
        top, left = (place * step % (SCENE - SIDE + 1) for step in (37, 89))
        return Image.fromarray(self.scenes[scene, top : top + SIDE, left : left + SIDE])

    def _note(self) -> None:
        self.read += 1
        if self.notes is not None and self.read % self.every == 0:
            line = {"read": self.read, "rss_mib": rss_mib(), "seconds": self._seconds()}
            with self.notes.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if self.read == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    def _seconds(self) -> float:
        return round(time.perf_counter() - self.began, 1)


def rss_mib() -> float:
    """Memory that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def pixels(image: Image.Image) -> Tensor:
    """[channel, height, width] from -1 to 1, as the planted ViT wants them."""
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return values.float().div_(127.5).sub_(1)


def tiny() -> tuple[HookedViT, PlantedViT]:
    """A planted ViT of 5 blocks and 17 tokens."""
    vit = planted_vit(width=64, depth=5, heads=4, image_size=SIDE, amplify={3: 2})
    model = HookedViT.wrap(vit.module)
    model.preprocess = pixels
    return model, vit


def score(config: Config, shard: Shard) -> None:
    """Score one shard, from its checkpoint on where there is one."""
    model, _ = tiny()
    crops = Crops(config.images, _file(config, shard, "jsonl"), config.kill_after)
    checkpoint = _file(config, shard, "safetensors")
    score_shard(model, images(crops), FIND, shard=shard, checkpoint=checkpoint)


def scored(config: Config, shard: Shard) -> dict[str, Any]:
    """Processes score the shard, the first of them killed after a third; memory and time of each."""
    checkpoint, notes = (_file(config, shard, kind) for kind in ("safetensors", "jsonl"))
    while not (checkpoint.exists() and RunState.load(checkpoint).complete):
        first = not notes.exists()
        notes.touch()
        options = {
            "--out": config.out,
            "--images": config.images,
            "--piece": f"{shard.number}/{shard.of}",
            "--threads": config.threads,
        }
        if first:
            options["--kill-after"] = config.images // (3 * shard.of)
        words = [str(word) for option in options.items() for word in option]
        ended = subprocess.run([sys.executable, "-m", "benchmarks.scale", *words], check=False)
        if ended.returncode != (-signal.SIGKILL if first else 0):
            raise SystemExit(f"Shard {shard.number} of {shard.of} ended with {ended.returncode}.")
    return memory(notes, checkpoint)


def memory(notes: Path, checkpoint: Path) -> dict[str, Any]:
    """What a shard took: every life of its process, from the notes."""
    lives: list[list[dict[str, float]]] = []
    for line in map(json.loads, notes.read_text().splitlines()):
        if not lives or line["read"] <= lives[-1][-1]["read"]:
            lives.append([])
        lives[-1].append(line)
    longest = max(lives, key=len)
    return {
        "processes": len(lives),
        "images_per_second": round(longest[-1]["read"] / longest[-1]["seconds"]),
        "images_of_longest": longest[-1]["read"],
        "rss_mib_first": longest[0]["rss_mib"],
        "rss_mib_last": longest[-1]["rss_mib"],
        "rss_mib_largest": max(line["rss_mib"] for life in lives for line in life),
        "checkpoint_mib": round(checkpoint.stat().st_size / 2**20, 2),
    }


def compared(config: Config) -> dict[str, Any]:
    """The merged shards beside the run in one piece."""
    parts = [_file(config, Shard(i, config.shards), "safetensors") for i in range(config.shards)]
    began = time.perf_counter()
    merged = merge(parts, config.out / "merged.safetensors")
    seconds = time.perf_counter() - began
    whole = _file(config, Shard(), "safetensors")
    one, other = RunState.load(whole), RunState.load(merged)
    model, vit = tiny()
    found = [
        find_register_neurons(model, images(Crops(config.images)), FIND, checkpoint=file)
        for file in (whole, merged)
    ]
    files = [each.save(config.out / f"{i}.json").read_bytes() for i, each in enumerate(found)]
    return {
        "merge_seconds": round(seconds, 3),
        "images_scored": one.sums.whole("n_images"),
        "outliers": one.sums.whole("n_outliers"),
        "sums_equal": one.sums.sums.keys() == other.sums.sums.keys()
        and all(torch.equal(value, other.sums.sums[name]) for name, value in one.sums.sums.items()),
        "neuron_files_equal": files[0] == files[1],
        "neurons_are_the_planted_ones": found[0].by_layer() == vit.truth,
    }


def _file(config: Config, shard: Shard, kind: str) -> Path:
    return config.out / f"{shard.number}-of-{shard.of}.{kind}"


def main(config: Config) -> None:
    from benchmarks.run import machine  # with all peers: not for the processes that score

    torch.set_num_threads(config.threads)
    config.out.mkdir(parents=True, exist_ok=True)
    if config.piece is not None:
        score(config, Shard(*map(int, config.piece.split("/"))))
        return
    shards = [Shard(), *(Shard(i, config.shards) for i in range(config.shards))]
    result = {
        "machine": machine(),
        "versions": versions(),
        "images": config.images,
        "pieces": {f"{s.number}/{s.of}": scored(config, s) for s in shards},
        **compared(config),
    }
    (config.out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
