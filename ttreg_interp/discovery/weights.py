"""What the weights alone say: do the neurons' output rows point where the outliers grow?"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.interventions.neuron_set import NeuronSet

_RANDOM_ROWS = 256
_INPUTS_PER_DIMENSION = 4


def weight_check(
    model: Any, neurons: NeuronSet, direction: Float[Tensor, " d_model"], seed: int
) -> dict[str, Any]:
    """Cosines of the neurons' output rows with the outlier direction and with the block's own.

    Args:
        model: a HookedViT.
        neurons: the register neurons.
        direction: mean direction from ordinary tokens to outliers.
        seed: of the random neurons and of the inputs of the linearisation.

    Returns:
        Per layer: the cosines, the mean |cosine| of random neurons, and the cosine of the block's
        leading singular direction with the outlier direction.

    Source:
        arXiv 2407.16826 (SINDER): outliers point along the leading left singular vector of the
        linearised block.
    """
    layers = []
    for layer, chosen in neurons.layers:
        block = model.blocks[layer]
        rows = torch.nn.functional.normalize(block.mlp.W_out.detach().float().cpu(), dim=1)
        generator = torch.Generator().manual_seed(seed)
        others = torch.randperm(len(rows), generator=generator)[:_RANDOM_ROWS]
        towards = direction.float()
        leading = leading_direction(block, generator)
        layers.append(
            {
                "layer": layer,
                "cosine": (rows[list(chosen)] @ towards).tolist(),
                "random_cosine": float((rows[others] @ towards).abs().mean()),
                "leading_cosine": float((leading @ towards).abs()),
                "cosine_with_leading": (rows[list(chosen)] @ leading).abs().tolist(),
                "random_with_leading": float((rows[others] @ leading).abs().mean()),
            }
        )
    return {"layers": layers}


@torch.no_grad()
def leading_direction(block: Any, generator: torch.Generator) -> Float[Tensor, " d_model"]:
    """Leading left singular vector of the linearised block, from its weights alone.

        (I + M diag(g2) C) (I + A diag(g1) C),   A = sum over heads W_V W_O,   C: centring

    M is the least-squares linear map from random normal inputs of the MLP to its output.

    Args:
        block: a HookedBlock.
        generator: of the inputs.
    """
    attn, mlp = block.attn, block.mlp
    d_model = attn.W_V.shape[1]
    a = torch.einsum("hmd,hdn->mn", attn.W_V.float(), attn.W_O.float()).cpu()
    shape = (_INPUTS_PER_DIMENSION * d_model, d_model)
    inputs = torch.randn(shape, generator=generator)
    outputs = mlp.neurons(inputs[None].to(mlp.W_out)).float()[0] @ mlp.W_out.float()
    m = torch.linalg.lstsq(inputs, (outputs - outputs.mean(dim=0)).cpu()).solution
    eye = torch.eye(d_model)
    after_attention = eye + _normed(block.ln1, eye) @ a
    whole = after_attention @ (eye + _normed(block.ln2, eye) @ m)
    return torch.linalg.svd(whole.T)[0][:, 0]


def _normed(norm: Any, eye: Tensor) -> Float[Tensor, "d_model d_model"]:
    """The linear part of a norm, its scale left out: centring, then gain."""
    centred = eye - eye.mean(dim=1, keepdim=True) if norm.centred else eye
    return centred if norm.w is None else centred * norm.w.detach().float().cpu()
