"""What a cache keeps: bytes of distinct storage behind the tensors of one run."""

from collections.abc import Iterable

from torch import Tensor


def retained_mib(tensors: Iterable[Tensor]) -> float:
    """Mebibytes of the storages that the tensors lie in, each counted once.

    Example:
        >>> import torch
        >>> kept = torch.zeros(2**18)
        >>> retained_mib([kept, kept[:4]])
        1.0
    """
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values()) / 2**20
