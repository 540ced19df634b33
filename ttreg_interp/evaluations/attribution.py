"""Text-image attribution: how much each patch writes into the image embedding along a text's direction."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.evaluations.by_area import Pixels
from ttreg_interp.hooked import HookedViT
from ttreg_interp.hooked.rows import AttentionRows
from ttreg_interp.interventions import Intervention


@torch.no_grad()
def token_attribution(
    model: HookedViT,
    intervention: Intervention,
    pixels: Pixels,
    direction: Float[Tensor, " output"],
    layers: Sequence[int] | None = None,
) -> Float[Tensor, "batch token"]:
    """Direct effect of every token, through attention, on the output along a direction.

        c_t = sum_{l,h} p^{l,h}[cls, t] (v^{l,h}_t W_O^{l,h}) . g / s

    with s the scale of the final norm at [CLS] and g the direction pulled back through projection, gain
    and centring. Sums over all tokens and layers to what attention without biases adds to
    direction . output.

    Args:
        model: a HookedViT whose output is a linear function of the normed [CLS], such as CLIP's.
        intervention: in force during the run.
        pixels: images.
        direction: in the output space, e.g. a unit text embedding or a row of a classifier.
        layers: whose attention counts; default all.

    Returns:
        One number for every token of the run, test-time registers included; an attention bias is left
        out. `attribution_map` cuts out the patches.

    Raises:
        UnsupportedModelError: another pooling than [CLS], an output that is not linear, or attention
            with a norm or gate behind the heads.

    Source:
        Gandelsman et al., arXiv 2310.05916, section 3 (decomposition by token); arXiv 2506.08010, 5.2.
    """
    chosen = range(model.cfg.n_layers) if layers is None else layers
    pulled = _pulled_back(model, direction)
    values: dict[int, Tensor] = {}
    scales: list[Tensor] = []

    def project(layer: int, v: Tensor, hook: Any) -> None:
        along = (model.blocks[layer].attn.W_O @ pulled).to(v)  # [head, d_head]
        values[layer] = torch.einsum("bkhd,hd->bhk", v, along)

    n_tokens: list[int] = []
    with model.intervened(intervention):
        rows = AttentionRows(model, slice(0, 1), chosen)
        watching = [
            *rows.fwd_hooks(),
            *((f"blocks.{layer}.attn.hook_v", partial(project, layer)) for layer in chosen),
            ("ln_final.hook_scale", lambda scale, hook: scales.append(scale)),
            ("blocks.0.hook_resid_mid", lambda resid, hook: n_tokens.append(resid.shape[1])),
        ]
        model.run_with_hooks(pixels, fwd_hooks=watching)
    written = torch.stack([(rows[layer][:, :, 0] * values[layer]).sum(dim=1) for layer in chosen])
    scale = scales[0].flatten(1)[:, :1]  # of [CLS], or of the pooled vector
    return (written.sum(dim=0) / scale)[:, -n_tokens[0] :]


def attribution_map(
    model: HookedViT,
    intervention: Intervention,
    pixels: Pixels,
    direction: Float[Tensor, " output"],
    layers: Sequence[int] | None = None,
) -> Float[Tensor, "batch grid_height grid_width"]:
    """The patches of `token_attribution` as a picture; score it with `metrics.segmentation.score_maps`."""
    found = token_attribution(model, intervention, pixels, direction, layers)
    return model.layout(pixels.shape).of_length(found.shape[1]).grid(found)


def _pulled_back(model: HookedViT, direction: Tensor) -> Float[Tensor, " d_model"]:
    """g: what a unit of the residual stream at [CLS] adds along the direction, times the norm's scale."""
    parts = model.parts
    gates = [block.attn.inner_norm or block.attn.gate for block in parts.blocks]
    if parts.unembed is None or parts.ln_final is None or any(gate is not None for gate in gates):
        raise UnsupportedModelError(
            f"{model.cfg.model_name}: attribution needs a final norm, a linear output and attention "
            "without a norm or gate behind the heads."
        )
    _check_pools_cls(model)
    weight, _ = parts.unembed()
    pulled = weight.T @ direction.to(weight)
    if model.ln_final.w is not None:
        pulled = pulled * model.ln_final.w
    return pulled - pulled.mean() if model.ln_final.centred else pulled


def _check_pools_cls(model: HookedViT) -> None:
    """Refuse models whose pooling reads anything but [CLS]."""
    layout, cfg = model.layout(), model.cfg
    shape = (1, layout.n_tokens, cfg.d_model)
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(
        cfg.device, cfg.dtype
    )
    if layout.n_cls == 0 or not torch.equal(model.parts.pool(tokens).view(-1), tokens[0, 0]):
        raise UnsupportedModelError(
            f"{cfg.model_name} does not read its output off [CLS] alone; attribution by token needs that."
        )
