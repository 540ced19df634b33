"""What evaluations read off one arm's forward pass, always of patches alone."""

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import LayoutError
from ttreg_interp.evaluations.by_area import Pixels
from ttreg_interp.hooked import HookedViT, TokenLayout
from ttreg_interp.interventions import Intervention
from ttreg_interp.metrics.arm_runs import ArmRun, ArmRuns, Observed

Side: TypeAlias = Literal["key", "query", "value"]
SIDES: tuple[Side, ...] = get_args(Side)
"""Which features of an attention layer."""
Grid = Float[Tensor, "batch grid_height grid_width d"]


def observed(
    model: HookedViT, intervention: Intervention, pixels: Pixels, attention: Sequence[int] = ()
) -> ArmRun:
    """Output, and [CLS] attention of some layers, of one arm."""
    runs = ArmRuns(model, {"arm": intervention}, Observed(attention=frozenset(attention)))
    return next(runs(pixels))[1]


def attention_map(run: ArmRun, layer: int) -> Float[Tensor, "batch grid_height grid_width"]:
    """[CLS] attention on each patch, mean over heads; registers and an attention bias left out."""
    attention = run.attention[layer].mean(dim=1)
    layout = run.layout.of_length(attention.shape[1])
    return layout.grid(attention)


def attention_features(
    model: HookedViT,
    intervention: Intervention,
    pixels: Pixels,
    layers: Sequence[int],
    sides: Sequence[Side] = SIDES,
) -> dict[tuple[Side, int], Grid]:
    """Keys, queries and values of the patches, heads side by side; before any rotation."""
    names: dict[tuple[Side, int], str] = {
        (side, layer): f"blocks.{layer}.attn.hook_{side[0]}" for side in sides for layer in layers
    }
    with model.intervened(intervention):
        _, cache = model.run_with_cache(
            pixels,
            names_filter=list(names.values()),
            stop_at_layer=max(layers) + 1,
            return_cache_object=False,
        )
    layout = model.layout(pixels.shape)
    return {at: _last_patches(cache[name].flatten(2), layout) for at, name in names.items()}


def _last_patches(rows: Float[Tensor, "batch token d"], layout: TokenLayout) -> Grid:
    """Patches are the last rows, whatever registers or biases were put in front of them."""
    patches = rows[:, rows.shape[1] - layout.n_patches :]
    return patches.unflatten(1, (layout.height, layout.width))


Token: TypeAlias = Literal[
    "cls", "mean", "central", "outlier", "normal", "trained-register", "register", "output"
]
"""Which vector stands for an image: [CLS]; the mean, the central, the strongest or the median patch by
norm; the first trained or test-time register, and in a run without one the strongest patch, whose part a
register takes; or what the model returns."""


def residual(
    model: HookedViT, intervention: Intervention, pixels: Pixels
) -> Float[Tensor, "batch token d_model"]:
    """The residual stream after the last block, all rows."""
    with model.intervened(intervention):
        return model(pixels, stop_at_layer=model.cfg.n_layers)


def dense(model: HookedViT, intervention: Intervention, pixels: Pixels) -> Grid:
    """Patch tokens after the final norm."""
    with model.intervened(intervention):
        tokens = model(pixels, return_type="tokens")
    return _last_patches(tokens, model.layout(pixels.shape))


def image_vectors(
    model: HookedViT, intervention: Intervention, pixels: Pixels, token: Token
) -> Float[Tensor, "batch d"]:
    """One vector for every image; after the final norm, but for 'output'.

    Raises:
        LayoutError: the run has no such token.
    """
    if token == "output":
        with model.intervened(intervention):
            return model(pixels)
    stream = residual(model, intervention, pixels)
    layout = model.layout(pixels.shape).of_length(stream.shape[1])
    rows = _rows(stream, layout, token)
    normed = stream if model.parts.ln_final is None else model.ln_final(stream)
    chosen = normed.gather(1, rows[:, :, None].expand(-1, -1, normed.shape[2]))
    return chosen.mean(dim=1)


def _rows(
    stream: Float[Tensor, "batch token d_model"], layout: TokenLayout, token: Token
) -> Tensor:
    """Rows of the token axis to average, [batch, row]."""
    parts = {
        "cls": layout.cls,
        "trained-register": layout.trained_registers,
        "register": layout.test_time_registers,
        "mean": layout.patches,
    }
    if token in parts:
        rows = torch.arange(layout.n_tokens)[parts[token]]
        rows = rows if token == "mean" else rows[:1]
        if len(rows):
            return rows.to(stream.device).expand(len(stream), -1)
        if token == "cls":
            raise LayoutError(f"A run of {layout} has no [CLS]; take another token.")
    start = layout.patches.start
    if token == "central":
        middle = start + layout.height // 2 * layout.width + layout.width // 2
        return torch.full((len(stream), 1), middle, device=stream.device)
    ranked = stream[:, layout.patches].norm(dim=-1).argsort(dim=1, descending=True, stable=True)
    place = layout.n_patches // 2 if token == "normal" else 0
    return ranked[:, place : place + 1] + start
