"""Metrics are cheap to import: what only one of them needs is loaded when it is used."""

import subprocess
import sys

MODULES = [
    "artifacts",
    "attention",
    "classification",
    "dense_probes",
    "discovery",
    "intervals",
    "norms",
    "probes",
    "segmentation",
    "similarity",
]
HEAVY = [
    "matplotlib",
    "sklearn",
    "skimage",
    "datasets",
    "timm",
    "open_clip",
    "torchmetrics",
    "scipy",
]


def test_importing_metrics_loads_no_library_that_only_some_of_them_need():
    names = ", ".join(f"ttreg_interp.metrics.{name}" for name in MODULES)
    code = (
        f"import sys, torch; old = set(sys.modules); import {names}; print(*set(sys.modules) - old)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {name.split(".")[0] for name in run.stdout.split()} & set(HEAVY)
