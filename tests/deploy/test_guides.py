"""The code of the guides runs as it stands."""

import re
from pathlib import Path

import pytest

import ttreg_interp as tt

GUIDES = Path(__file__).resolve().parents[2] / "docs" / "how-to"
TRACED = ("tt.export(", "tt.to_onnx(", "torch.compile(")
"""What no shape-checked process can run; `test_traced` covers it."""


@pytest.mark.parametrize("guide", ["deploy.md", "compare.md"])
def test_the_code_of_a_guide_runs(guide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (GUIDES / guide).read_text()
    if missing := set(re.findall(r"\btt\.(\w+)\(", text)) - set(tt.__all__):
        pytest.skip(f"not public yet: {sorted(missing)}")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict = {}
    assert len(blocks) > 2
    for block in blocks:
        if not any(call in block for call in TRACED):
            exec(compile(block, guide, "exec"), names)
