"""CircuitsVis' view: a file of its own, offline, of the right rows."""

import builtins
import json
import re

import pytest
import torch

from tests.report.browser import browsing, opened
from tests.report.models import KINDS, pixels_for, tiny
from ttreg_interp.errors import DataError, LayoutError
from ttreg_interp.hooked import TokenLayout
from ttreg_interp.interventions import AttentionBias, TestTimeRegister
from ttreg_interp.report.attention_view import MOST_TOKENS, write_attention_view


def cached(kind: str, intervention=None):
    model = tiny(kind)
    with model.intervened(*([intervention] if intervention else [])):
        return model.run_with_cache(pixels_for(model, 1))[1]


def props(file) -> dict:
    """What CircuitsVis was told."""
    text = file.read_text(encoding="utf-8")
    return json.loads(re.findall(r"CircuitsVis\.AttentionHeads,\s*(\{.*?\})\s*\)", text, re.S)[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_small_patterns_are_shown_as_they_are(tmp_path, kind):
    cache = cached(kind, TestTimeRegister({0: [3]}))
    pattern = cache["pattern", 1][0]
    told = props(write_attention_view(pattern, cache.layout, tmp_path / "view.html"))
    torch.testing.assert_close(torch.tensor(told["attention"]), pattern, rtol=1e-3, atol=1e-5)
    assert told["tokens"][: cache.layout.patches.start] == [
        name for name in cache.layout.row_names() if not name.startswith("patch")
    ]
    assert told["attentionHeadNames"] == ["head 0", "head 1"]


def test_large_grids_come_in_blocks_whose_rows_still_sum_to_one(tmp_path):
    layout = TokenLayout(1, 0, 14, 20)
    pattern = torch.rand(3, layout.n_tokens, layout.n_tokens).softmax(dim=-1)
    told = props(write_attention_view(pattern, layout, tmp_path / "view.html"))
    shown = torch.tensor(told["attention"])
    assert shown.shape[1] == shown.shape[2] == len(told["tokens"]) <= MOST_TOKENS
    torch.testing.assert_close(shown.sum(dim=-1), torch.ones(shown.shape[:2]), rtol=1e-3, atol=0)


def test_the_side_of_a_block_may_be_chosen(tmp_path):
    layout = TokenLayout(0, 0, 4, 6)
    pattern = torch.rand(1, 24, 24).softmax(dim=-1)
    told = props(write_attention_view(pattern, layout, tmp_path / "view.html", side=3))
    assert told["tokens"] == ["0,0", "0,3", "3,0", "3,3"]


def test_the_key_of_a_bias_is_left_out(tmp_path):
    cache = cached("[CLS]", AttentionBias(torch.zeros(3, 2, 16), torch.zeros(3, 2, 16)))
    pattern = cache["pattern", 0][0]
    told = props(write_attention_view(pattern, cache.layout, tmp_path / "view.html"))
    shown = torch.tensor(told["attention"])
    torch.testing.assert_close(shown, pattern[..., 1:], rtol=1e-3, atol=1e-5)


def test_a_pattern_of_another_layout_is_refused(tmp_path):
    with pytest.raises(LayoutError, match="does not fit a layout of 17 tokens"):
        write_attention_view(torch.zeros(2, 9, 9), TokenLayout(1, 0, 4, 4), tmp_path / "view.html")


def test_without_circuitsvis_it_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("circuitsvis"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match="ttreg-interp\\[attention\\]"):
        write_attention_view(torch.ones(1, 1, 1), TokenLayout(0, 0, 1, 1), tmp_path / "view.html")


def test_it_opens_offline(tmp_path):
    cache = cached("[CLS]")
    title = "<img src=x onerror=alert(1)>"
    file = tmp_path / "view.html"
    write_attention_view(cache["pattern", 2][0], cache.layout, file, title=title)
    with browsing() as browser, opened(browser, file) as visit:
        visit.page.get_by_text("head 1").first.wait_for()
        assert visit.page.locator("h1").inner_text() == title
        assert visit.requests == [file.as_uri()]
        assert visit.complaints == []
