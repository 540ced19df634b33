"""The page on adding a model: its code is run as it stands there."""

import re
from pathlib import Path

import pytest
import torch

from ttreg_interp.hooked import HookedViT
from ttreg_interp.hooked.sources import Request

PAGE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "add-a-model.md"


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def page(blocks) -> dict:
    """The names that the page's blocks define, run one after the other."""
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_the_page_s_own_check_passes(page):
    assert isinstance(page["model"], HookedViT)


@torch.no_grad()
def test_the_example_agrees_with_its_source_to_rounding(page):
    pixels = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(page["model"](pixels), page["module"](pixels))


def test_the_example_is_a_whole_source_file(page):
    module, other = page["module"], torch.nn.Linear(2, 2)
    assert page["tower"](module) is module and page["tower"](other) is None
    assert page["preprocess"](module, (32, 32)) is None
    loaded = page["load"](Request("vit_b_32", random=True))
    assert page["tower"](loaded.module) is loaded.module and not loaded.module.training


def test_the_code_is_formatted_as_the_package_is(blocks):
    assert all(len(line) <= 100 for block in blocks for line in block.splitlines())
