"""What the page shows of one image: maps before and after, and numbers in words."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ttreg_interp.hooked import HookedViT
from ttreg_interp.interventions import Intervention
from ttreg_interp.metrics.trace import Trace, trace
from ttreg_interp.report.thumbnails import thumbnails

SIDE = 448
"""Longest side of a map, in pixels."""


@dataclass(frozen=True, eq=False)
class Look:
    """One image, intact and under an intervention."""

    before: Trace
    """The intact model."""
    after: Trace
    """Under the intervention."""

    @property
    def n_layers(self) -> int:
        """Layers that can be shown."""
        return len(self.before.norms)

    def norms(self, layer: int) -> tuple[Float[Tensor, "height width"], ...]:
        """Patch norms after a block, before and after."""
        return tuple(run.layout.grid(run.norms[layer, 0]) for run in (self.before, self.after))

    def attention(self, layer: int) -> tuple[Float[Tensor, "height width"], ...]:
        """Attention to patches, mean over heads, before and after."""
        return tuple(
            run.layout.grid(run.attention[layer, 0].mean(dim=0))
            for run in (self.before, self.after)
        )

    def words(self, layer: int) -> str:
        """A Markdown table of what changed."""
        lines = ["| | intact | intervened |", "|---|---|---|"]
        ratios = [f"{float(norms.max() / norms.median()):.2f}" for norms in self.norms(layer)]
        lines.append(f"| largest / median patch norm, layer {layer} | {' | '.join(ratios)} |")
        shares = [f"{float(maps.max()):.1%}" for maps in self.attention(layer)]
        lines.append(f"| largest attention to one patch | {' | '.join(shares)} |")
        drawn = float(self.after.register_attention[layer, 0].mean())
        if self.after.layout.n_test_time_registers:
            lines.append(f"| attention to added tokens | – | {drawn:.1%} |")
        lines.append(f"| change of the output | – | {self.output_change:.3f} |")
        return "\n".join(lines)

    @property
    def output_change(self) -> float:
        """||output - intact|| / ||intact||."""
        intact, other = self.before.output.flatten(), self.after.output.flatten()
        return float((other - intact).norm() / intact.norm())


def look(
    model: HookedViT, pixels: Float[Tensor, "1 channel height width"], intervention: Intervention
) -> Look:
    """Run one image with and without an intervention.

    Args:
        model: any HookedViT.
        pixels: one preprocessed image.
        intervention: what to do.

    Raises:
        InterventionError: it does not fit the model.
        ContractError: NaN or inf in the residual stream.
    """
    pixels = pixels.to(model.cfg.device, model.cfg.dtype)
    before = trace(model, pixels)
    with model.intervened(intervention):
        return Look(before, trace(model, pixels))


def seen_picture(model: HookedViT, pixels: Float[Tensor, "1 channel height width"]) -> Image.Image:
    """The picture as the model sees it, cropped and resized, so that maps lie exactly on it."""
    shown = Image.fromarray(thumbnails(pixels, model.preprocess)[0].numpy())
    return shown.resize(_size(shown.height, shown.width), Image.Resampling.BICUBIC)


def coloured(
    maps: tuple[Float[Tensor, "height width"], ...],
) -> tuple[UInt8[np.ndarray, "tall wide 3"], ...]:
    """Maps as pictures on one colour scale, from 0 to the largest value of all."""
    from matplotlib import colormaps

    top = max(float(one.max()) for one in maps)
    pictures = []
    for one in maps:
        values = (one.detach().float().cpu() / max(top, 1e-12)).numpy()
        picture = Image.fromarray((colormaps["viridis"](values)[..., :3] * 255).astype(np.uint8))
        size = _size(*one.shape)
        pictures.append(np.asarray(picture.resize(size, Image.Resampling.NEAREST)))
    return tuple(pictures)


def _size(height: int, width: int) -> tuple[int, int]:
    """Width and height in pixels, the longest `SIDE`."""
    scale = SIDE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def drawing_of(layers: list[np.ndarray]) -> torch.Tensor | None:
    """Which pixels a painter's layers [height, width, red-green-blue-alpha] cover; None if no layer."""
    if not layers:
        return None
    return torch.from_numpy(np.stack([layer[..., 3] > 0 for layer in layers]).any(axis=0))
