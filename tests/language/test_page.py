"""The page on massive activations: its code runs and says what it says."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "concepts" / "massive-activations.md"


def test_the_code_of_the_page_runs(capsys):
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), names)
    assert names["found"].by_layer() == names["planted"].truth
    assert names["anywhere"].by_layer() == names["both"].truth
    assert set(names["anywhere"].outliers) == {"0", "5"}
    said = capsys.readouterr().out
    assert "from block 1 to block 5, on tokens: register." in said
    assert "dimensions [62, 63], from block 1 to block 5" in said and "50.0% of heads" in said
