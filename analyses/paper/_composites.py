"""Photographs with an object pasted in, so that boxes, masks and depth are known by construction."""

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from analyses._bench import BenchConfig
from analyses._figures import BLUE, COLUMN, bars, panels
from analyses._run import Findings
from ttreg_interp.data.annotated import Annotated, Depth, Item, Mask, Objects, Size
from ttreg_interp.data.open import open_data
from ttreg_interp.evaluations.arms import standard_arms
from ttreg_interp.evaluations.base import Evaluation
from ttreg_interp.evaluations.run import evaluate
from ttreg_interp.testbed import photographs

SIZE = 224


@dataclass(frozen=True)
class Config(BenchConfig):
    """Composites, or a set of annotated images."""

    data: str = ""
    """FORMAT:PATH#SPLIT; absent: photographs with a disc pasted in."""
    limit: int = 24
    """At most so many images."""


def composites(kind: type, count: int, seed: int = 0) -> Annotated[Any]:
    """Photographs with a disc of another one pasted in.

    Args:
        kind: Objects (a box around the disc), Mask (1 within it), or Depth (1 m within, 4 m around).
        count: how many images.
        seed: of place and size.
    """
    items = tuple(
        Item(
            f"composite {number}",
            Path(f"composite-{number}"),
            partial(_picture, number, seed),
            partial(_target, kind, number, seed),
        )
        for number in range(count)
    )
    names = ("background", "object")
    return Annotated(f"composites {seed}", kind, items, classes=names)


@lru_cache(maxsize=1)
def _photographs() -> tuple[Image.Image, ...]:
    return tuple(photographs(SIZE).values())


def _disc(number: int, seed: int) -> Bool[Tensor, "height width"]:
    generator = torch.Generator().manual_seed(seed * 1000 + number)
    x, y, size = torch.rand(3, generator=generator).tolist()
    radius = SIZE * (0.15 + 0.15 * size)
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    centre = [radius + share * (SIZE - 2 * radius) for share in (y, x)]
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2


def _picture(number: int, seed: int) -> Image.Image:
    known = _photographs()
    back, front = known[number % len(known)], known[(number * 7 + 3) % len(known)]
    disc = Image.fromarray((_disc(number, seed) * 255).to(torch.uint8).numpy())
    return Image.composite(front.rotate(90 * number), back, disc)


def _target(kind: type, number: int, seed: int, size: Size) -> Any:
    disc = _disc(number, seed)
    if kind is Mask:
        return Mask(disc.long(), 255)
    if kind is Depth:
        return Depth(torch.where(disc, 1.0, 4.0))
    rows, columns = disc.nonzero(as_tuple=True)
    edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return Objects(torch.stack(edges).float()[None])


def evaluated(
    config: BenchConfig, evaluation: Evaluation, kind: type, data: str, arms: list[str]
) -> Findings:
    """One evaluation of the bench's model, on composites unless data are named."""
    bench = config.bench
    images = open_data(data).take(config.limit) if data else composites(kind, config.limit)
    chosen = standard_arms(bench.model, bench.neurons, arms, n_draws=3, seed=config.seed)
    result = evaluate(
        evaluation,
        bench.model,
        images,
        chosen,
        config.out / "records",
        config.batch_size,
        config.seed,
    )
    metric = result.metrics[0]
    values = {arm: result[arm, metric].value for arm in result.arms}
    figure, axes = panels(1, 1, 0.3 * len(values) + 0.6, COLUMN)
    bars(axes[0][0], values, BLUE)
    axes[0][0].set_title(metric)
    said = ", ".join(f"{arm} {value}" for arm, value in values.items())
    return Findings(
        headline=f"{metric}: {said}",
        words=str(result),
        numbers={"rows": [row.to_dict() for row in result.rows], "details": result.details},
        figures={"arms": figure},
        facts={**bench.facts, "data": images.source, "n_images": dict(result.n_images)},
    )
