"""What compilers and exporters trace, checked in a process without run-time shape checks.

Dynamo cannot trace the checks of jaxtyping and beartype that the other tests run under.
"""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_models_are_compiled_and_exported():
    files = [str(HERE / name) for name in ("compiled.py", "exported.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, *files], cwd=HERE.parents[1], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
