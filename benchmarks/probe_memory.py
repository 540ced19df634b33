"""Peak memory of probes whose features lie on disk, with N and 4 N training images.

Command: python -m benchmarks.probe_memory [PROBE ...]
Runtime: 4 minutes on one core of a CPU; needs 1 GB of disk. Every row is a process of its own, which writes
random features as a run does and then trains the probe on them.
Expect: the peak stays, the features grow. The processes run with MALLOC_MMAP_THRESHOLD_=65536: glibc
else keeps freed blocks in a heap that has holes, which adds up to 150 MiB by chance.
"""

import os
import resource
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from ttreg_interp.evaluations.records import Chunk, Records, file_of, write
from ttreg_interp.metrics.classification import Labelled
from ttreg_interp.metrics.dense_probes import (
    DenseProbe,
    DepthHead,
    LabelledPatches,
    depth_probe,
    segmentation_probe,
)
from ttreg_interp.metrics.probes import LogisticProbe, SGDProbe, linear_probe

DENSE, VECTOR = (24, 24, 384), (768,)
"""Features of an image: patches of 24 x 24, or one token."""
KINDS = {"segmentation": 200, "depth": 200, "SGD": 50_000, "L-BFGS": 50_000}
"""Probe -> N."""


@dataclass(frozen=True)
class Peak:
    """One process."""

    probe: str
    """What was trained."""
    images: int
    """On how many."""
    features_mib: float
    """Bytes of the features on disk."""
    before_mib: float
    """High-water mark before the probe."""
    peak_mib: float
    """High-water mark after it."""


def measured(probe: str, images: int, folder: Path) -> Peak:
    """Write features, train the probe on them, and look at the high-water mark of the process."""
    dense = probe in ("segmentation", "depth")
    records = _written(folder, images, DENSE if dense else VECTOR, 32 if dense else 1000)
    features = records.rows("intact", "features")
    before = _high_water()
    if dense:
        target = records.rows("intact", "target")
        _train_dense(probe, LabelledPatches(features, target))
    else:
        _train_linear(probe, Labelled(features, records.column("intact", "label")))
    shape = DENSE if dense else VECTOR
    size = 4 * images * torch.Size(shape).numel() / 2**20
    return Peak(probe, images, size, before, _high_water())


def _written(folder: Path, images: int, shape: tuple[int, ...], chunk: int) -> Records:
    generator = torch.Generator().manual_seed(0)
    chunks = []
    for number, start in enumerate(range(0, images, chunk)):
        places = range(start, min(start + chunk, images))
        chunks.append(Chunk("train", number, places))
        kept: dict[str, Tensor] = {
            "intact/features": torch.randn(len(places), *shape, generator=generator),
            "intact/label": torch.randint(10, (len(places),), generator=generator),
        }
        if len(shape) > 1:
            ids = torch.randint(1, 10, (len(places), 224, 224), generator=generator)
            kept["intact/target"] = ids.to(torch.int16)
        write(file_of(folder, chunks[-1]), kept, list(places), [])
    return Records(folder, "train", tuple(chunks))


def _train_dense(probe: str, data: LabelledPatches) -> None:
    how = DenseProbe(epochs=1, seeds=(0,), batch_size=4)
    few = data[torch.arange(16)]
    if probe == "segmentation":
        segmentation_probe(data, few, 10, how)
    else:
        depth_probe(data, few, DepthHead("regression"), how)


def _train_linear(probe: str, data: Labelled) -> None:
    few = data[torch.arange(1000)]
    kinds = {
        "SGD": SGDProbe(grid=(0.1,), epochs=1, seeds=(0,)),
        "L-BFGS": LogisticProbe(grid=(1e-2,), iterations=3, seeds=(0,)),
    }
    linear_probe(data, few, kinds[probe])


def _high_water() -> float:
    """Resident memory of this process at its highest, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure every probe at N and 4 N, each in a new process, and print a table."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # read by the processes when they start
    lines = [
        "| probe | images | features on disk, MiB | before, MiB | peak, MiB |",
        "|" + " --- |" * 5,
    ]
    for probe in sys.argv[1:] or KINDS:
        for images in (KINDS[probe], 4 * KINDS[probe]):
            with (
                tempfile.TemporaryDirectory() as folder,
                ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
            ):
                found = pool.submit(measured, probe, images, Path(folder)).result()
            lines.append(
                f"| {found.probe} | {found.images} | {found.features_mib:.0f} "
                f"| {found.before_mib:.0f} | {found.peak_mib:.0f} |"
            )
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
