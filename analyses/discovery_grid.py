"""Does discovery find planted register neurons, all of them and no other, without being told anything?

Paper and place: arXiv 2506.08010, Algorithm 1, with every hyper-parameter found from the images.
Question: precision and recall over layouts, seeds, sizes, and 1 to 20 neurons in 1 to 6 layers; and
what is found in clean models of the same kind.
Command: python -m analyses.discovery_grid --out runs/discovery_grid
Runtime: about 10 min on one CPU core.
Expect: precision and recall 1.0 in all 60 models; nothing in any of the 60 clean ones.
"""

import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from analyses._run import Findings, main
from ttreg_interp.discovery import FindConfig, find_register_neurons
from ttreg_interp.hooked import HookedViT
from ttreg_interp.testbed.config import FIRST_LAYER, PlantedConfig
from ttreg_interp.testbed.photographs import photograph_tensor
from ttreg_interp.testbed.planted import clean_vit, planted_vit


@dataclass(frozen=True)
class Config:
    """Planted and clean models, searched with the default configuration."""

    out: Path
    """Folder for result.json and summary.md."""
    layouts: tuple[str, ...] = ("timm", "open_clip")
    """Whose VisionTransformer."""
    sizes: tuple[str, ...] = ("tiny", "small", "base")
    """Named sizes of the planted models."""
    seeds: int = 10
    """Models of each layout and size."""
    image_size: int = 112
    """Height and width of the photographs, in pixels."""


def drawn(layout: str, size: str, seed: int, image_size: int) -> PlantedConfig:
    """A planted model with 1 to 20 neurons in 1 to 6 layers, drawn from the seed."""
    draw = random.Random(f"{layout} {size} {seed}")
    depth = PlantedConfig(size=size).shape.depth
    n_layers = draw.randint(1, 6)
    layers = sorted(draw.sample(range(FIRST_LAYER, depth - 1), n_layers))
    counts = dict.fromkeys(layers, 1)
    for _ in range(draw.randint(n_layers, 20) - n_layers):
        counts[draw.choice(layers)] += 1
    n_detect = draw.randint(1, n_layers)
    return PlantedConfig(
        seed=seed,
        layout=layout,  # type: ignore[arg-type]
        size=size,
        image_size=image_size,
        detect={layer: counts[layer] for layer in layers[:n_detect]},
        amplify={layer: counts[layer] for layer in layers[n_detect:]},
    )


def searched(config: PlantedConfig, clean: bool, images: Tensor) -> dict[str, Any]:
    """One model, searched; precision and recall of an empty truth are 1 if nothing is found."""
    vit = (clean_vit if clean else planted_vit)(config)
    start = time.process_time()
    found = find_register_neurons(HookedViT.wrap(vit.module), images, FindConfig(evidence=False))
    truth = {(layer, neuron) for layer, neurons in vit.truth.items() for neuron in neurons}
    right = len(truth & set(found))
    return {
        "layout": config.layout,
        "size": config.size,
        "seed": config.seed,
        "clean": clean,
        "detect": dict(config.detect),
        "amplify": dict(config.amplify),
        "planted": len(truth),
        "found": len(found),
        "precision": right / len(found) if len(found) else float(not truth),
        "recall": right / len(truth) if truth else float(not len(found)),
        "emerges_at": [vit.emerges_at, found.emerges_at],
        "missed": sorted(truth - set(found)),
        "false": sorted(set(found) - truth),
        "cpu_seconds": time.process_time() - start,
        "caveats": found.caveats,
    }


def analyse(config: Config) -> Findings:
    """Every model, and how many were searched without a fault."""
    images = photograph_tensor(config.image_size)
    rows = [
        searched(drawn(layout, size, seed, config.image_size), clean, images)
        for layout in config.layouts
        for size in config.sizes
        for seed in range(config.seeds)
        for clean in (False, True)
    ]
    exact = {
        name: sum(row[name] == 1 for row in rows if not row["clean"])
        for name in ("precision", "recall")
    }
    silent = sum(not row["found"] for row in rows if row["clean"])
    n_models = len(rows) // 2
    lines = [f"| {name} 1.0 | {count} of {n_models} planted |" for name, count in exact.items()]
    return Findings(
        headline=f"precision and recall 1.0 in {min(exact.values())} of {n_models} planted models",
        words="\n".join(
            [
                "| | models |",
                "|---|---|",
                *lines,
                f"| nothing found | {silent} of {n_models} clean |",
            ]
        ),
        numbers={"exact": exact, "silent": silent, "models": rows},
        figures={},
    )


if __name__ == "__main__":
    main(globals())
