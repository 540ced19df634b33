"""Running sums in fixed point.

Integer addition is associative: whatever the order of the batches, however they were spread over
processes, and wherever a run was stopped and resumed, the sums are the same to the last bit. Floating
point sums are not.
"""

from collections.abc import Iterable, Mapping

from jaxtyping import Float, Shaped
from torch import Tensor

from ttreg_interp.errors import ContractError

SCALE = 2.0**22
"""One unit of a sum is 2.4e-7; sums reach 1e12."""
_LIMIT = 2**62


class ExactSums:
    """Named sums, as int64; `add` takes real numbers, `count` whole ones.

    Example:
        >>> import torch
        >>> sums = ExactSums()
        >>> sums.add("score", torch.tensor([0.5, 0.25])); sums.add("score", torch.tensor([1.0, 0.0]))
        >>> sums["score"].tolist()
        [1.5, 0.25]
    """

    def __init__(self, sums: Mapping[str, Tensor] | None = None):
        self.sums: dict[str, Tensor] = dict(sums or {})

    def add(self, name: str, values: Shaped[Tensor, "*shape"]) -> None:
        """Add real numbers, rounded to 2^-22.

        Raises:
            ContractError: NaN, inf, or a sum that no longer fits.
        """
        scaled = (values.cpu().double() * SCALE).round()
        if not bool((scaled.abs() < _LIMIT).all()):  # false for NaN too
            raise _too_large(name)
        self.count(name, scaled.long())

    def count(self, name: str, values: Shaped[Tensor, "*shape"]) -> None:
        """Add whole numbers.

        Raises:
            ContractError: a sum that no longer fits.
        """
        added = values.long().cpu()
        total = self.sums[name].add_(added) if name in self.sums else added.clone()
        if total.numel() and int(total.abs().max()) > _LIMIT:
            raise _too_large(name)
        self.sums[name] = total

    def __getitem__(self, name: str) -> Float[Tensor, "*shape"]:
        """A sum of real numbers."""
        return self.sums[name].double() / SCALE

    def whole(self, name: str) -> int:
        """A sum of whole numbers, one number."""
        return int(self.sums[name])

    @classmethod
    def merged(cls, parts: Iterable["ExactSums"]) -> "ExactSums":
        """The sums over all parts."""
        total = cls()
        for part in parts:
            for name, values in part.sums.items():
                total.count(name, values)
        return total


def _too_large(name: str) -> ContractError:
    return ContractError(
        f"The running sum {name!r} left the range of fixed-point numbers: an activation is NaN, "
        "infinite, or above 1e9. Run the model in a wider dtype."
    )
