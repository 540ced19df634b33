"""Photographs with an object pasted in, so that boxes, masks and depth are known by construction."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from analyses._bench import Bench, BenchConfig
from analyses._figures import BLUE, COLUMN, bars, panels
from analyses._run import Findings
from ttreg_interp.data.annotated import Annotated, Depth, Item, Mask, Objects, Size
from ttreg_interp.data.open import open_data
from ttreg_interp.evaluations.arms import Arms, standard_arms
from ttreg_interp.evaluations.base import Evaluation
from ttreg_interp.evaluations.result import Result
from ttreg_interp.evaluations.run import evaluate
from ttreg_interp.hooked import HookedViT
from ttreg_interp.testbed import photographs

SIZE = 224


@dataclass(frozen=True)
class Config(BenchConfig):
    """Composites, or a set of annotated images."""

    data: str = ""
    """FORMAT:PATH#SPLIT; absent: photographs with a disc pasted in."""
    count: int = 24
    """So many images of them at most; `limit` is for the images of the outliers."""

    def annotated(self, kind: type) -> Annotated[Any]:
        """The set that was named, or composites."""
        if self.data:
            return open_data(self.data).take(self.count, self.seed)
        return composites(kind, self.count)


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
    config: Config, evaluation: Evaluation, data: Annotated[Any], arms: Sequence[str]
) -> Result:
    """One evaluation of the bench's model, some of the standard arms beside the intact model."""
    bench = config.bench
    chosen = standard_arms(bench.model, bench.neurons, arms, n_draws=3, seed=config.seed)
    return measured(config, evaluation, bench.model, data, chosen)


def measured(
    config: BenchConfig,
    evaluation: Evaluation,
    model: HookedViT,
    data: Annotated[Any],
    arms: Arms,
) -> Result:
    """One evaluation; its records lie in the folder of the script."""
    folder = config.out / "records" / evaluation.title.split(" (")[0].replace(" ", "-")
    return evaluate(evaluation, model, data, arms, folder, config.batch_size, config.seed)


def told(bench: Bench, *results: Result, preface: str = "") -> Findings:
    """Results as the findings of a script: the first metric of each is its headline and a panel."""
    heights = [0.3 * len(result.arms) + 0.6 for result in results]
    figure, axes = panels(len(results), 1, max(heights), COLUMN)
    said = []
    for result, axis in zip(results, axes[:, 0], strict=True):
        metric = result.metrics[0]
        values = {arm: result[arm, metric].value for arm in result.arms}
        bars(axis, values, BLUE)
        axis.set_title(f"{result.title}: {metric}")
        said.append(f"{metric}: " + ", ".join(f"{arm} {value}" for arm, value in values.items()))
    return Findings(
        headline="; ".join(said),
        words="\n\n".join([*filter(None, [preface]), *map(str, results)]),
        numbers={result.title: _numbers(result) for result in results},
        figures={"arms": figure},
        facts=bench.facts,
    )


def _numbers(result: Result) -> dict[str, Any]:
    return {
        "rows": [row.to_dict() for row in result.rows],
        "details": result.details,
        "data": result.config["data"]["test"]["source"],
        "n_images": dict(result.n_images),
        "faults": {split: list(faults) for split, faults in result.faults.items()},
    }
