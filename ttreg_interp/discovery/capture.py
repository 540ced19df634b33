"""What discovery reads from one forward pass, and the check that it is finite."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import ContractError, LayoutError
from ttreg_interp.hooked.layout import TokenLayout

STAGES = ("hook_resid_mid", "hook_resid_post")
"""After attention, after the MLP."""


def residual_norms(
    model: Any, pixels: Float[Tensor, "batch channel height width"]
) -> tuple[Float[Tensor, "layer stage batch token"], TokenLayout]:
    """Norms of every token after each attention and each MLP, before the final norm.

    Raises:
        ContractError: NaN or inf; names the layer.
    """
    norms: list[Tensor] = []
    sites = [f"blocks.{layer}.{stage}" for layer in range(model.cfg.n_layers) for stage in STAGES]
    reads = [(site, _reader(lambda resid: norms.append(token_norms(resid)))) for site in sites]
    with torch.no_grad(), model.hooks(fwd_hooks=reads):
        model(pixels, stop_at_layer=model.cfg.n_layers)
    stacked = torch.stack(norms)
    check_finite(stacked, sites, model)
    layout = model.layout(pixels.shape).of_length(stacked.shape[-1])
    return stacked.unflatten(0, (-1, len(STAGES))), layout


def token_norms(resid: Float[Tensor, "batch token d_model"]) -> Float[Tensor, "batch token"]:
    """Norms in float32, whatever the model's dtype: a rounded norm may cross the threshold."""
    return torch.linalg.vector_norm(
        resid, dim=-1, dtype=torch.promote_types(resid.dtype, torch.float32)
    )


def check_finite(norms: Float[Tensor, "site batch token"], sites: list[str], model: Any) -> None:
    """Stop at activations that are no numbers.

    Raises:
        ContractError: names the first layer with NaN or inf.
    """
    broken = ~torch.isfinite(norms)
    if broken.any():
        first = int(broken.flatten(1).any(dim=1).nonzero()[0])
        raise ContractError(
            f"{model.cfg.model_name}: NaN or inf in {int(broken[first].sum())} of "
            f"{broken[first].numel()} tokens at {sites[first]} ({model.cfg.dtype}). Check the "
            "images and the weights, or run in a wider dtype."
        )


@contextmanager
def mlp_inputs(
    model: Any, layers: range
) -> Iterator[dict[int, Float[Tensor, "batch token d_model"]]]:
    """Keep what each MLP reads (the output of `ln2`) in the forward passes inside.

    That is a quarter of the neurons' size in a model with four neurons per dimension, and the
    neurons of a few rows are recomputed from it at once.
    """
    inputs: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in layers:
            keep = _input_keeper(inputs, layer)
            handle = model.blocks[layer].mlp.register_forward_pre_hook(keep)
            stack.callback(handle.remove)
        yield inputs


def _input_keeper(inputs: dict[int, Tensor], layer: int) -> Callable[..., None]:
    def keep(module: Any, args: tuple[Tensor, ...]) -> None:
        inputs[layer] = args[0].detach()

    return keep


def _reader(read: Callable[[Tensor], None]) -> Callable[..., None]:
    def hook_function(activation: Tensor, hook: Any) -> None:
        read(activation.detach())

    return hook_function


def resolve_layer(model: Any, layer: int, name: str) -> int:
    """A layer counted from 0; negative ones count from the end.

    Raises:
        LayoutError: the model has no such layer.
    """
    n_layers = model.cfg.n_layers
    if not -n_layers <= layer < n_layers:
        raise LayoutError(
            f"{name}={layer}: {model.cfg.model_name} has layers 0 to {n_layers - 1} "
            f"(or {-n_layers} to -1, from the end)."
        )
    return layer % n_layers
