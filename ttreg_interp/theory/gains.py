"""To which directions of the residual stream the next MLP and the model's head respond least."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import UnsupportedModelError


@dataclass(frozen=True)
class Grams:
    """Inner products of one layer's heads, [head, d_head, d_head]: |z W_O|^2 = z G z."""

    whole: Float[Tensor, "head d_head d_head"]
    """In the whole residual space."""
    mlp: Float[Tensor, "head d_head d_head"]
    """In the half to which the layer's MLP responds least."""
    head: Float[Tensor, "head d_head d_head"] | None
    """In the half to which the model's head responds least; None where it is not linear."""


def grams_of(model: Any, layer: int) -> Grams:
    """Inner products of what the heads of a layer write."""
    block = model.blocks[layer]
    write = block.attn.W_O.detach().double()
    centred = model.cfg.normalization_type == "LN"
    gates = [] if block.mlp.W_gate is None else [block.mlp.W_gate]
    reads = torch.cat([block.mlp.W_in, *gates], dim=1)
    mlp = low_gain(_behind(block.ln2.w, reads, centred))
    try:
        unembed = model.W_U
    except UnsupportedModelError:
        head = None
    else:
        head = write @ low_gain(_behind(model.ln_final.w, unembed, centred))
    in_mlp = write @ mlp
    return Grams(write @ write.mT, in_mlp @ in_mlp.mT, None if head is None else head @ head.mT)


def low_gain(reads: Float[Tensor, "d_model reader"]) -> Float[Tensor, "d_model half"]:
    r"""An orthonormal basis of the half of the space to which a linear map responds least.

    The left singular vectors of the d_model / 2 smallest singular values (the kernel first): a
    random direction has half of its square there, an ignored one all of it.

    Example:
        >>> low_gain(torch.diag(torch.tensor([3.0, 0.0, 2.0, 0.1]))).abs().double().sum(dim=1).tolist()
        [0.0, 1.0, 0.0, 1.0]
    """
    reads = reads.detach().double()
    return torch.linalg.eigh(reads @ reads.T).eigenvectors[:, : len(reads) // 2]


def _behind(
    weight: Tensor | None, reads: Float[Tensor, "d_model reader"], centred: bool
) -> Float[Tensor, "d_model reader"]:
    """A linear map with the norm before it, at a given scale of that norm."""
    reads = reads.detach().double()
    reads = reads if weight is None else weight.detach().double()[:, None] * reads
    return reads - reads.mean(dim=0) if centred else reads
