"""How exact the other CPU kernels are: outputs, outliers and neurons against torch's own kernels.

Question: what do `fast_cpu="float32"` and `fast_cpu="bfloat16"` change, in activations, in which tokens
are outliers, and in which neurons rank first?
Command: python -m benchmarks.precision --models testbed:planted --images DIRECTORY
Runtime: a minute on one CPU core.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from PIL import Image
from torch import Tensor

import ttreg_interp as tt
from ttreg_interp.discovery import find_outliers
from ttreg_interp.testbed import photograph_tensor

TOP = 50
"""Neurons that are compared."""


@dataclass(frozen=True)
class Config:
    """What to compare."""

    models: tuple[str, ...] = ("testbed:planted",)
    """Model specs."""
    images: Path | None = None
    """A folder; default: the photographs of the testbed."""
    limit: int = 32
    """Images."""


@dataclass(frozen=True)
class Seen:
    """What one run shows, in float32."""

    output: Tensor
    """[batch, output]."""
    resid: Tensor
    """[batch, token, d_model], after the detection layer."""
    neurons: Tensor
    """[layer, batch, token, neuron], up to the detection layer."""

    def outliers(self, threshold: float) -> Tensor:
        """[batch, token]."""
        return self.resid.norm(dim=-1) > threshold

    def ranking(self, outliers: Tensor) -> list[int]:
        """The first neurons by mean |activation| at outliers, flat over layers."""
        scores = self.neurons[:, outliers].abs().mean(dim=1)
        return scores.flatten().topk(TOP).indices.tolist()


def see(model: Any, pixels: Tensor, layer: int) -> Seen:
    """One forward pass, read as float32."""
    resid = f"blocks.{layer}.hook_resid_post"
    posts = [f"blocks.{i}.mlp.hook_post" for i in range(layer + 1)]
    output, cache = model.run_with_cache(pixels, names_filter=[resid, *posts])
    neurons = torch.stack([cache[name].float() for name in posts])
    return Seen(output.float(), cache[resid].float(), neurons)


def error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|, of all entries together."""
    return float((found - expected).norm() / expected.norm())


def pixels_of(config: Config, model: Any) -> Tensor:
    """The images as the model reads them."""
    if config.images is None:
        return photograph_tensor(model.image_size[0])[: config.limit]
    files = sorted(config.images.glob("*.jpg"))[: config.limit]
    return torch.stack([model.preprocess(Image.open(file).convert("RGB")) for file in files])


def compared(spec: str, config: Config) -> list[str]:
    """One row of the table for every kernel."""
    plain = tt.load(spec)
    pixels = pixels_of(config, plain)
    report = find_outliers(plain, pixels)
    expected = see(plain, pixels, report.detect_layer)
    threshold, rule = report.threshold, report.rule
    if threshold is None:  # no outliers: the longest 2 % stand for them
        threshold, rule = float(expected.resid.norm(dim=-1).quantile(0.98)), "98 % of the norms"
    mask = expected.outliers(threshold)
    rows = []
    for precision in ("float32", "bfloat16"):
        seen = see(tt.load(spec, fast_cpu=precision), pixels, report.detect_layer)
        errors = " | ".join(
            f"{error(getattr(seen, part), getattr(expected, part)):.1e}"
            for part in ("output", "resid", "neurons")
        )
        own = seen.outliers(threshold)
        shared = len(set(seen.ranking(own)) & set(expected.ranking(mask)))
        rows.append(
            f"| {spec} | {precision} | {errors} | {int((own & mask).sum())} of {int(mask.sum())}, "
            f"{int((own & ~mask).sum())} new ({rule}) | {shared} of {TOP} |"
        )
    return rows


@torch.no_grad()
def main(config: Config) -> None:
    print("| model | kernels | output | residual stream | neurons | outliers | first neurons |")
    print("|---|---|---|---|---|---|---|")
    for spec in config.models:
        print("\n".join(compared(spec, config)), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
