"""nnsight's import leaves the rest of the process as it was."""

import subprocess
import sys

RUN = """
from ttreg_interp.backends.importing import import_nnsight
nnsight = import_nnsight()
assert callable(nnsight.save)
assert not hasattr(object(), "save")
"""


def test_no_object_gets_a_save_that_onnx_export_would_find():
    run = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
