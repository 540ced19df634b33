"""HookedLM: what single families have of their own, and what is refused."""

import pytest
import torch
import transformers as hf
from torch import Tensor

from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.hooked import HookedLM
from ttreg_interp.interventions import ExtraTokens, MaskTokens
from ttreg_interp.testbed.random_lm import random_lm

SIZE = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def make(name: str, **changes) -> torch.nn.Module:
    """A tiny random language model of transformers."""
    torch.manual_seed(0)
    config = getattr(hf, f"{name}Config")(**{**SIZE, **changes})
    model_class = "Gemma3ForCausalLM" if name == "Gemma3Text" else f"{name}ForCausalLM"
    return getattr(hf, model_class)(config).eval()


def ids(length: int) -> Tensor:
    return torch.randint(0, 50, (2, length), generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------------- windows

WINDOWS = {
    "Mistral": {"sliding_window": 5},
    "Phi3": {"sliding_window": 5},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "Qwen3": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "Gemma2": {"sliding_window": 5},
    "Gemma3Text": {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
}


@pytest.mark.parametrize("length", [3, 5, 6, 20])
@pytest.mark.parametrize("name", WINDOWS)
def test_a_window_is_the_sources_window_at_every_length(name, length):
    module = make(name, **WINDOWS[name])
    hooked = HookedLM.wrap(module)
    assert 5 in [block.attn.parts.window for block in hooked.blocks]
    expected = module(input_ids=ids(length)).logits
    torch.testing.assert_close(hooked(ids(length)), expected, rtol=1e-5, atol=1e-5)


def test_a_token_sees_its_window_and_whatever_stands_in_front_of_the_text():
    hooked = HookedLM.wrap(make("Mistral", sliding_window=5))
    with hooked.intervened(ExtraTokens(2)):
        _, cache = hooked.run_with_cache(ids(12))
    seen = cache["pattern", 1][0, 0] > 0
    for token in range(12):
        expected = [True, True, *(token - 5 < other <= token for other in range(12))]
        assert seen[2 + token].tolist() == expected
    assert seen[:2].sum() == 3  # of the added tokens, each sees those before it


def test_a_hidden_token_stays_hidden_behind_a_window():
    hooked = HookedLM.wrap(make("Mistral", sliding_window=5))
    with hooked.intervened(MaskTokens((3,))):
        _, cache = hooked.run_with_cache(ids(12))
    pattern = cache["pattern", 0]
    assert (pattern[..., 4:, 3] == 0).all()
    torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern.sum(-1)))


# ---------------------------------------------------------------------- caps and norms behind layers


def test_scores_and_logits_of_gemma_2_stay_below_their_caps():
    hooked = HookedLM.wrap(random_lm("gemma2"))
    logits, cache = hooked.run_with_cache(ids(9))
    scores = cache["attn_scores", 1]
    assert logits.abs().max() < 3 and scores[scores.isfinite()].abs().max() < 2
    assert logits.abs().max() > 2 and scores[scores.isfinite()].abs().max() > 1.5


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_what_a_layer_adds_is_what_its_norm_returns(family):
    hooked = HookedLM.wrap(random_lm(family))
    _, cache = hooked.run_with_cache(ids(9))
    for norm, added, before, after in (
        ("ln1_post", "hook_attn_out", "hook_resid_pre", "hook_resid_mid"),
        ("ln2_post", "hook_mlp_out", "hook_resid_mid", "hook_resid_post"),
    ):
        normalized = cache[f"blocks.1.{norm}.hook_normalized"]
        torch.testing.assert_close(
            normalized * getattr(hooked.blocks[1], norm).w, cache[f"blocks.1.{added}"]
        )
        total = cache[f"blocks.1.{before}"] + cache[f"blocks.1.{added}"]
        torch.testing.assert_close(cache[f"blocks.1.{after}"], total)


def test_a_neuron_writes_along_its_row_of_the_output_weights_also_behind_a_norm():
    """The update of a run in which all other neurons are zero."""
    hooked = HookedLM.wrap(random_lm("gemma2"))

    def only_seven(post: Tensor, hook) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(7), post.shape[-1]) * post

    seen = {}
    keep = ("blocks.1.hook_mlp_out", lambda out, hook: seen.update(out=out))
    hooked.run_with_hooks(ids(9), fwd_hooks=[("blocks.1.mlp.hook_post", only_seven), keep])
    row = hooked.blocks[1].mlp.W_out[7]
    along = torch.nn.functional.cosine_similarity(seen["out"], row, dim=-1).abs()
    torch.testing.assert_close(along, torch.ones_like(along), rtol=0, atol=1e-5)


# ---------------------------------------------------------------------- rotation

SCALED = {
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {
        "rope_type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0],
        "original_max_position_embeddings": 16,
    },
}  # fmt: skip


@pytest.mark.parametrize("length", [9, 40])
@pytest.mark.parametrize("scaling", SCALED)
def test_a_scaled_rotation_is_the_sources(scaling, length):
    module = make("Llama", rope_parameters={"rope_theta": 1e4, **SCALED[scaling]})
    expected = module(input_ids=ids(length)).logits
    torch.testing.assert_close(HookedLM.wrap(module)(ids(length)), expected, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- refusals

EXPERTS = {"num_experts": 2, "num_local_experts": 2, "moe_intermediate_size": 8}
REFUSED = {
    "Bloom": {"n_layer": 1, "n_head": 4},
    "Falcon": {"alibi": True, "num_kv_heads": 4},
    "Mpt": {"d_model": 16, "n_heads": 4, "n_layers": 1},
    "OPT": {"ffn_dim": 32},
    "GPTJ": {"n_embd": 16, "n_head": 4, "n_layer": 1, "rotary_dim": 4},
    "Olmo2": {},
    "Cohere": {},
    "Mixtral": EXPERTS,
    "Qwen2Moe": {**EXPERTS, "shared_expert_intermediate_size": 8},
    "Qwen3Moe": EXPERTS,
}


@pytest.mark.parametrize("name", REFUSED)
def test_families_that_would_be_computed_wrongly_are_refused_with_those_that_are_not(name):
    module = make(name, **REFUSED[name])
    with pytest.raises(UnsupportedModelError, match="GPT2, GPTNeoX, Llama.* ALiBi .*experts"):
        HookedLM.wrap(module)


def test_a_gemma_that_sees_later_tokens_is_refused():
    module = make("Gemma3Text", use_bidirectional_attention=True)
    with pytest.raises(UnsupportedModelError, match="see those after them"):
        HookedLM.wrap(module)


def test_attention_that_is_no_softmax_is_refused():
    from ttreg_interp.testbed.language_attention import use_kernel

    model = random_lm("gpt2")
    use_kernel(model, "relu")
    with pytest.raises(UnsupportedModelError, match="attends by 'ttreg_relu'.*'sdpa'"):
        HookedLM.wrap(model)
