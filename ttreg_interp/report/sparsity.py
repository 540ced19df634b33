"""How sparse a neuron is: its activation on the patches of an image, the largest first."""

import torch
from jaxtyping import Float
from torch import Tensor


def ranks(n_patches: int) -> list[int]:
    """Which ranks are kept: powers of two, and the last.

    Example:
        >>> ranks(20)
        [1, 2, 4, 8, 16, 20]
    """
    powers = [2**power for power in range(n_patches.bit_length())]
    return powers if powers[-1] == n_patches else [*powers, n_patches]


def by_rank(activation: Float[Tensor, "*rows patch"]) -> Float[Tensor, "*rows rank"]:
    """|activation| of the patches in falling order, in units of the largest; silent rows are 0.

    Args:
        activation: of one neuron and image a row.

    Returns:
        The values at `ranks`; they fall from 1.

    Example:
        >>> by_rank(torch.tensor([0.5, 0.0, -2.0, 1.0])).tolist()
        [1.0, 0.5, 0.0]
    """
    falling = activation.abs().sort(dim=-1, descending=True).values
    chosen = falling[..., [rank - 1 for rank in ranks(activation.shape[-1])]]
    return chosen / falling[..., :1].clamp_min(torch.finfo(falling.dtype).tiny)
