"""A traced language model is the hooked one, and runs where the hooked one would not fit."""

import copy
from functools import cache

import pytest
import torch

pytest.importorskip("nnsight", reason="nnsight is not installed (pip install nnsight)")

import transformers as hf
from transformers import masking_utils

from tests.hooked.sources.hf_families import randomised
from ttreg_interp.backends.nnsight import TracedLM
from ttreg_interp.hooked.language import HookedLM
from ttreg_interp.interventions import (
    AblateHeads,
    AttentionBias,
    ClippedSoftmax,
    ExtraTokens,
    MaskTokens,
    SetMassiveActivations,
    TestTimeRegister,
    ZeroNeurons,
)

SIZE = {
    "vocab_size": 65,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
PHI = {"num_key_value_heads": 2, "pad_token_id": None}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
WINDOW = {
    "sliding_window": 5,  # of texts of 9
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    "query_pre_attn_scalar": 8,
}
GPT2 = {
    "vocab_size": 65,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
MODELS = {
    "Llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZE, **GROUPED)),
    "Llama, eager": lambda: hf.LlamaForCausalLM(
        hf.LlamaConfig(**SIZE, **GROUPED, attn_implementation="eager")
    ),
    "Qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**SIZE, **GROUPED)),
    "Gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**SIZE, **GROUPED)),
    "Phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**SIZE, **PHI)),
    "Gemma 2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**SIZE, **GROUPED, **WINDOW, **CAPS)),
    "Gemma 3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**SIZE, **GROUPED, **WINDOW)),
    "GPT-NeoX": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZE)),
    "GPT-2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "GPT-2, eager": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, attn_implementation="eager")),
}


def _noise(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(seed))


KINDS = {
    "a register": TestTimeRegister({1: [5, 6]}, fill="same"),
    "tokens that are seen late": ExtraTokens(2, visible_from_layer=1, copies=3.0),
    "zeroed neurons": ZeroNeurons({1: [5, 6]}),
    "an attention bias": AttentionBias(_noise(0), _noise(1)),
    "a token and an attention bias": ExtraTokens() + AttentionBias(_noise(0), _noise(1)),
    "a hidden token": MaskTokens((0,), from_layer=1),
    "an ablated head": AblateHeads({1: [0]}),
    "a clipped softmax": ClippedSoftmax(gamma=-0.05),
    "a massive activation set": SetMassiveActivations(1, (3,), (50.0,), (0,)),
}


@cache
def both(name: str) -> tuple[HookedLM, TracedLM]:
    """The same weights under hook points, and under nnsight."""
    module = randomised(MODELS[name]())
    return HookedLM.wrap(module), TracedLM.trace(copy.deepcopy(module))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_every_family_agrees_at_every_hook_point_that_is_served(name, kind):
    hooked, traced = both(name)
    ids = torch.randint(0, 65, (2, 9))
    with torch.no_grad():
        plain = hooked(ids)
        with hooked.intervened(KINDS[kind]), traced.intervened(KINDS[kind]):
            expected, theirs = hooked.run_with_cache(ids)
            found, mine = traced.run_with_cache(ids)
    assert not torch.allclose(expected, plain, atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert mine.layout == theirs.layout
    for point in mine:
        seen = theirs[point].expand_as(mine[point])  # eager attention has one mask a text
        torch.testing.assert_close(mine[point], seen, rtol=1e-4, atol=1e-5, msg=point)


def test_tokens_late_starts_and_early_stops_agree():
    hooked, traced = both("Llama")
    ids = torch.randint(0, 65, (2, 9))
    with hooked.intervened(KINDS["a register"]), traced.intervened(KINDS["a register"]):
        torch.testing.assert_close(traced(ids, "tokens"), hooked(ids, "tokens"))
        resid = hooked(ids, stop_at_layer=2)
        torch.testing.assert_close(traced(ids, stop_at_layer=2), resid)
        later = traced(resid, start_at_layer=2), hooked(resid, start_at_layer=2)
        torch.testing.assert_close(*later)


def test_a_language_model_of_seventy_billion_parameters_is_planned_without_memory(monkeypatch):
    # transformers looks at position ids to find texts that are packed together; meta has no values
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    config = hf.LlamaConfig(  # Llama-3-70B
        vocab_size=128256,
        hidden_size=8192,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        intermediate_size=28672,
        max_position_embeddings=8192,
    )
    with torch.device("meta"):
        module = hf.LlamaForCausalLM(config).eval()
    assert 70.0e9 < sum(parameter.numel() for parameter in module.parameters()) < 71.0e9
    traced = TracedLM.trace(module)
    with torch.no_grad(), traced.intervened(TestTimeRegister({2: [1, 2]}, fill="same")):
        resid = traced(torch.zeros(1, 16, dtype=torch.long, device="meta"), stop_at_layer=4)
    assert resid.device.type == "meta"
    assert resid.shape == (1, 17, 8192)
