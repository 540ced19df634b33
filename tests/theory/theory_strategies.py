"""Random closed-form models for the laws of the theory."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from hypothesis import settings
from hypothesis import strategies as st

from ttreg_interp.theory.assumptions import Setting, draw
from ttreg_interp.theory.noop import NoOpModel
from ttreg_interp.theory.noop_norm import NormSetting, draw_normed, rate_in_key_gain

law = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)


def number(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


@st.composite
def plain_settings(draw_value: Callable, **fixed) -> Setting:
    """One identity head, no biases, one sink: the paper's model at any size and geometry."""
    values = {
        "d_model": draw_value(st.integers(4, 32)),
        "neurons": draw_value(st.integers(2, 48)),
        "tokens": draw_value(st.integers(3, 12)),
        "outputs": draw_value(st.integers(1, 6)),
        "form": draw_value(st.sampled_from(["token", "gain"])),
        "u1_norm": draw_value(number(0.5, 2)),
        "u2_norm": draw_value(number(0.5, 2)),
        "angle": draw_value(number(0.2, math.pi / 2)),
        "alignment": draw_value(number(0.2, 2)),
        "content": draw_value(number(0.2, 2)),
    }
    return Setting(**values | fixed)


@st.composite
def general_settings(draw_value: Callable, **fixed) -> Setting:
    """Several heads with generic maps, several sinks, biases, smooth activations."""
    heads = draw_value(st.integers(1, 4))
    activation = draw_value(st.sampled_from(["relu", "gelu", "silu"]))
    sinks = draw_value(st.lists(number(0.5, 2), min_size=1, max_size=3))
    extra = {
        "heads": heads,
        "attention": "generic",
        "d_model": heads * draw_value(st.integers(4, 8)),
        "activation": activation,
        "biases": activation == "relu" and draw_value(st.booleans()),
        "sinks": tuple(sinks),
        "tokens": len(sinks) + draw_value(st.integers(2, 6)),
    }
    return draw_value(plain_settings(**extra | fixed))


@st.composite
def norm_settings(draw_value: Callable, **fixed) -> NormSetting:
    values = {
        "norm": draw_value(st.sampled_from(["rms", "layer"])),
        "d_model": draw_value(st.integers(6, 32)),
        "tokens": draw_value(st.integers(3, 8)),
        "alignment": draw_value(number(0, 0.5)),
        "query_bias": draw_value(number(0.5, 2)),
    }
    return NormSetting(**values | fixed)


@st.composite
def any_model(draw_value: Callable) -> NoOpModel:
    """With and without a norm."""
    seed = draw_value(seeds)
    if draw_value(st.booleans()):
        return draw_normed(draw_value(norm_settings(drain=draw_value(number(0, 1)))), seed=seed)
    return draw(draw_value(general_settings()), seed=seed)


def past_onset(
    model: NoOpModel, *logits: float, neuron: str = "intact", query: int = 0
) -> torch.Tensor:
    """Strengths at which the sinks lead the other tokens by so many logits, in every head."""
    onset, rate = model.onset(neuron, query), model.rate(neuron, query)
    return torch.stack([(onset + logit / rate).max() for logit in logits])


def saturated(setting: NormSetting, seed: int, logits: float = 50) -> NoOpModel:
    """A model with a norm and a key gain that puts its register so many logits ahead."""
    key_gain = logits / rate_in_key_gain(draw_normed(setting, seed=seed))
    return draw_normed(replace(setting, key_gain=key_gain), seed=seed)


def strengths(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def unchecked(configuration, **values):
    """A configuration with values that the type checker of the test suite would stop first."""
    for name, value in values.items():
        object.__setattr__(configuration, name, value)
    configuration.__post_init__()
    return configuration
