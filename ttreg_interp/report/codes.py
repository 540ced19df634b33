"""How attention is stored: one byte a value, on a logarithmic scale, with a bound on the error."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

LEVELS = 255
"""Codes above zero that a byte has."""


@dataclass(frozen=True)
class AttentionCode:
    """Attention in [0, 1] as a byte: 0 below `floor`, else 255 levels evenly spaced in the logarithm.

        value(c) = floor^((255 - c) / 254)  for c = 1 ... 255,    value(0) = 0

    Attention spans decades, and its picture is drawn on a logarithmic scale: equal relative errors
    are equal differences in colour.

    Example:
        >>> code = AttentionCode(floor=1e-5)
        >>> round(code.relative_error, 4)
        0.0229
        >>> code.decode(code.encode(torch.tensor([0.0, 0.25, 1.0])))
        tensor([0.0000, 0.2476, 1.0000])
    """

    floor: float
    """The smallest value that has a code of its own; what is smaller becomes 0."""

    @classmethod
    def for_keys(cls, n_keys: int) -> "AttentionCode":
        """A floor of a thousandth of uniform attention over `n_keys`."""
        return cls(floor=1e-3 / n_keys)

    @property
    def relative_error(self) -> float:
        """Largest relative error of a decoded value that is not below the floor."""
        return self.floor ** (-0.5 / (LEVELS - 1)) - 1

    def encode(self, values: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
        """The nearest codes."""
        levels = 1 - (values.double() / self.floor).log() / math.log(self.floor) * (LEVELS - 1)
        codes = levels.round().clamp(1, LEVELS)
        return torch.where(values < self.floor, 0, codes).to(torch.uint8)

    def decode(self, codes: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """What the codes stand for, in float32."""
        values = self.floor ** ((LEVELS - codes.double()) / (LEVELS - 1))
        return torch.where(codes == 0, 0.0, values).float()
