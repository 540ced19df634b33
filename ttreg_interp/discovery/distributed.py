"""Several processes, one search: each scores every n-th batch, and all add up to the same sums."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist

from ttreg_interp.discovery.checkpoint import Shard
from ttreg_interp.discovery.exact import ExactSums

T = TypeVar("T")


@contextmanager
def torchrun() -> Iterator[Shard]:
    """The process group of `torchrun --nproc-per-node N`; without torchrun, this process alone.

    gloo on CPUs, nccl where every process has a GPU of its own.

    Example:
        >>> with torchrun() as shard:
        ...     shard
        Shard(number=0, of=1)
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Shard()
        return
    local = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpus = torch.cuda.device_count() > local
    if on_gpus:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if on_gpus else "gloo")
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


def agreed(value: T) -> T:
    """The first process's value, in all of them."""
    if current_shard().of == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]
