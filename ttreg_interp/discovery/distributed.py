"""Several processes, one search: each scores every n-th batch, and all add up to the same sums."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

from ttreg_interp.discovery.checkpoint import Shard
from ttreg_interp.discovery.exact import ExactSums

T = TypeVar("T")
PATIENCE = timedelta(days=30)
"""How long a process waits for the others."""


@contextmanager
def torchrun() -> Iterator[Shard]:
    """The process group of `torchrun --nproc-per-node N`; without torchrun, this process alone.

    Processes exchange nothing but sums and choices, on the CPU (gloo), and wait for the slowest one
    however long it takes. Where each has a GPU, it is the one of its local rank.

    Example:
        >>> with torchrun() as shard:
        ...     shard
        Shard(number=0, of=1)
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Shard()
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.device_count() > local:
        torch.cuda.set_device(local)
    # By default, whoever waits half an hour gives up: on images that take the others longer.
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield current_shard()
    finally:
        dist.destroy_process_group()


def current_shard() -> Shard:
    """This process's share of the batches."""
    if not (dist.is_available() and dist.is_initialized()):
        return Shard()
    return Shard(dist.get_rank(), dist.get_world_size())


def summed(sums: ExactSums) -> ExactSums:
    """The sums over all processes, the same in each of them."""
    shard = current_shard()
    if shard.of == 1:
        return sums
    parts: list[dict] = [{} for _ in range(shard.of)]
    dist.all_gather_object(parts, sums.sums)
    return ExactSums.merged(ExactSums(part) for part in parts)


def agreed(find: Callable[[], T]) -> T:
    """What the first process finds, in all of them; the others wait."""
    shard = current_shard()
    found = [find() if shard.number == 0 else None]
    if shard.of > 1:
        dist.broadcast_object_list(found, src=0)
    return found[0]  # type: ignore[return-value]
