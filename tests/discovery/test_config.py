"""FindConfig: presets, and what it refuses."""

import json

import jaxtyping
import pytest

from ttreg_interp.discovery import FindConfig
from ttreg_interp.errors import DataError


@pytest.mark.parametrize(
    ("semantics", "score", "candidates", "threshold"),
    [
        ("auto", "projection", "patches", "valley"),
        ("paper", "signed", "patches", "sigma"),
        ("reference", "abs", "all", "absolute"),
    ],
)
def test_presets_fill_what_is_open_and_nothing_else(semantics, score, candidates, threshold):
    filled = FindConfig(semantics=semantics).resolved()
    assert (filled.score, filled.candidates, filled.threshold) == (score, candidates, threshold)
    assert FindConfig(semantics=semantics, score="contrast").resolved().score == "contrast"
    assert filled.resolved() == filled


def test_a_configuration_survives_json():
    config = FindConfig(sparsity=(0.5, 0.9), top_k=3)
    body = json.loads(json.dumps(config.to_dict()))
    assert FindConfig(**body | {"sparsity": tuple(body["sparsity"])}) == config


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 0}, "batch_size is at least 1; found 0"),
        ({"survey_images": 1}, "survey_images is at least 2"),
        ({"top_k": 0}, "top_k is at least 1; found 0"),
        ({"recursions": -1}, "recursions is at least 0"),
        ({"held_out": 1.0}, r"shares in \[0, 1\); found 1.0"),
        ({"suppress_to": -0.1}, "found 0.25 and -0.1"),
        ({"semantics": "mine"}, "semantics is one of .*'reference'.*; found 'mine'"),
        ({"score": "norm"}, "score is one of .*'projection', None.*; found 'norm'"),
        ({"threshold": "mean"}, "threshold is one of .*'sigma'"),
    ],
)
def test_wrong_values_are_refused_with_what_is_allowed(wrong, message):
    jaxtyping.config.update("jaxtyping_disable", True)  # or the type checker is first
    try:
        with pytest.raises(DataError, match=message):
            FindConfig(**wrong)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
