"""Processes under torchrun score a share of the batches each, and end up with the same file."""

import multiprocessing
import os
import socket
from pathlib import Path

from tests.discovery.models import Push, hooked, marked_vit, noise_images
from ttreg_interp.discovery import FindConfig, find_register_neurons, torchrun
from ttreg_interp.discovery.checkpoint import RunState

CONFIG = FindConfig(batch_size=2, survey_images=8, evidence=False, recursions=1)


def _find(rank: int, world: int, port: int, folder: Path) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    model = hooked(marked_vit(Push(2, 7, (0, 5))))
    with torchrun() as shard:
        assert (shard.number, shard.of) == (rank, world)
        found = find_register_neurons(
            model, noise_images(22), CONFIG, checkpoint=folder / "run.safetensors"
        )
    found.save(folder / f"{rank}.json")


def _in_two_processes(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_find, args=(i, 2, port, folder)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_two_processes_on_gloo_give_the_file_of_one(tmp_path):
    _in_two_processes(tmp_path)
    model = hooked(marked_vit(Push(2, 7, (0, 5))))
    alone = find_register_neurons(model, noise_images(22), CONFIG).save(tmp_path / "alone.json")
    assert (tmp_path / "0.json").read_bytes() == alone.read_bytes()
    assert (tmp_path / "1.json").read_bytes() == alone.read_bytes()
    shards = [RunState.load(tmp_path / f"run.safetensors.{i}-of-2") for i in range(2)]
    assert [state.sums.whole("n_images") for state in shards] == [9, 8]

    # A run that was killed before one of the processes had saved anything goes on all the same.
    (tmp_path / "run.safetensors.1-of-2").unlink()
    (tmp_path / "0.json").unlink()
    _in_two_processes(tmp_path)
    assert (tmp_path / "0.json").read_bytes() == alone.read_bytes()


def test_without_torchrun_there_is_one_shard():
    with torchrun() as shard:
        assert (shard.number, shard.of) == (0, 1)
