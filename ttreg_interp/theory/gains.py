"""How strongly the next MLP and the model's head respond to a direction of the residual stream."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import UnsupportedModelError


@dataclass(frozen=True)
class Grams:
    """Quadratic forms on what the heads of one layer mix, [head, d_head, d_head]."""

    whole: Float[Tensor, "head d_head d_head"]
    """z G z = |z W_O|^2."""
    mlp: Float[Tensor, "head d_head d_head"]
    """z G z = squared response of the layer's MLP to z W_O; see `response`."""
    head: Float[Tensor, "head d_head d_head"] | None
    """The same for the model's head; None where it is not linear."""


def grams_of(model: Any, layer: int) -> Grams:
    """The forms of one layer."""
    block = model.blocks[layer]
    write = block.attn.W_O.detach().double()
    centred = model.cfg.normalization_type == "LN"
    gates = [] if block.mlp.W_gate is None else [block.mlp.W_gate]
    mlp = response(_behind(block.ln2.w, torch.cat([block.mlp.W_in, *gates], dim=1), centred))
    try:
        unembed = model.W_U
    except UnsupportedModelError:
        head = None
    else:
        head = write @ response(_behind(model.ln_final.w, unembed, centred)) @ write.mT
    return Grams(write @ write.mT, write @ mlp @ write.mT, head)


def response(reads: Float[Tensor, "d_model reader"]) -> Float[Tensor, "d_model d_model"]:
    r"""The form $M = d\, W W^\top / \lVert W\rVert_F^2$: how strongly a linear map responds.

    $x M x / \lVert x\rVert^2$ is 1 on average over random directions, 0 in the kernel, and small
    along singular directions of low gain.

    Example:
        >>> response(torch.diag(torch.tensor([1.0, 0.0]))).tolist()
        [[2.0, 0.0], [0.0, 0.0]]
    """
    reads = reads.detach().double()
    return len(reads) * reads @ reads.T / reads.square().sum()


def _behind(
    weight: Tensor | None, reads: Float[Tensor, "d_model reader"], centred: bool
) -> Float[Tensor, "d_model reader"]:
    """A linear map with the norm before it, at a given scale of that norm."""
    reads = reads.detach().double()
    reads = reads if weight is None else weight.detach().double()[:, None] * reads
    return reads - reads.mean(dim=0) if centred else reads
