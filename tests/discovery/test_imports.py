"""Flags and names of discovery cost nothing: models are loaded when something is searched."""

import subprocess
import sys

import pytest

from ttreg_interp import discovery


def test_the_help_of_the_command_line_loads_no_model_library():
    code = (
        "import contextlib, sys\n"
        "from ttreg_interp.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['find', '--help'])\n"
        "sys.exit(bool({'torch', 'transformer_lens', 'timm', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_name_is_there_and_no_other():
    for name in discovery._HOME:
        assert getattr(discovery, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'find_everything'; it has"):
        _ = discovery.find_everything
