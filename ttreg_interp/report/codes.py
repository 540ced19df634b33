"""How attention is stored: one byte a value, on a logarithmic scale, with a bound on the error."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

LEVELS = 127
"""Codes above zero. With more of them a report of 12 images would be larger than 10 MB."""


@dataclass(frozen=True)
class AttentionCode:
    """Attention in [0, 1] as a byte, evenly spaced in log(1 + attention / uniform).

        code(v) = round(127 log(1 + n v) / log(1 + n)),    n keys,  uniform attention u = 1 / n

    Above u it is a logarithm, so that equal relative errors are equal differences in code; below u
    it is linear, so that no codes are spent on attention that does not matter.

    Example:
        >>> code = AttentionCode(n_keys=197)
        >>> round(code.relative_error, 4)
        0.021
        >>> code.decode(code.encode(torch.tensor([0.0, 0.25, 1.0])))
        tensor([0.0000, 0.2493, 1.0000])
    """

    n_keys: int
    """Keys of a row."""

    @property
    def relative_error(self) -> float:
        """e, where a decoded value differs by at most e (v + u) from v."""
        return math.expm1(math.log1p(self.n_keys) / (2 * LEVELS))

    def encode(self, values: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
        """The nearest codes."""
        levels = (values.float() * self.n_keys).log1p() / math.log1p(self.n_keys) * LEVELS
        return levels.round().clamp(0, LEVELS).to(torch.uint8)

    def decode(self, codes: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """What the codes stand for, in float32."""
        table = torch.arange(LEVELS + 1, dtype=torch.float64) / LEVELS * math.log1p(self.n_keys)
        return (table.expm1() / self.n_keys).float()[codes.long()]
