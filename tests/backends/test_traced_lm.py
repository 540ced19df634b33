"""A traced language model is the hooked one, and runs where the hooked one would not fit."""

import copy
from functools import cache

import pytest
import torch

pytest.importorskip("nnsight", reason="nnsight is not installed (pip install nnsight)")

import transformers as hf

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


@pytest.mark.parametrize("name", ["GPT-2", "Gemma 3"])
def test_a_dry_run_has_the_shapes_of_a_run(name):
    ids = torch.zeros(2, 9, dtype=torch.long)
    with torch.device("meta"):
        dry = TracedLM.trace(MODELS[name]().eval())
    traced, register = both(name)[1], KINDS["a register"]
    with torch.no_grad(), traced.intervened(register), dry.intervened(register):
        logits, cache = traced.run_with_cache(ids)
        planned, shapes = dry.run_with_cache(ids.to("meta"))
    assert planned.is_meta and planned.shape == logits.shape
    # a mask without padding may serve all texts at once
    assert {k: v.shape[1:] for k, v in shapes.items()} == {k: v.shape[1:] for k, v in cache.items()}


def test_shards_on_disk_give_what_the_whole_model_gives(tmp_path):
    pytest.importorskip("accelerate")
    hooked, _ = both("Llama")
    hooked.source.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    where = dict.fromkeys(
        ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"), "cpu"
    )
    where |= {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    sharded = hf.LlamaForCausalLM.from_pretrained(
        tmp_path, device_map=where, offload_folder=tmp_path / "offloaded"
    )
    assert next(sharded.model.layers[1].parameters()).is_meta  # not in memory between runs
    traced, register, ids = TracedLM.trace(sharded), KINDS["a register"], torch.arange(18)[None]
    with torch.no_grad(), hooked.intervened(register), traced.intervened(register):
        torch.testing.assert_close(traced(ids), hooked(ids), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- nnsight's own models


def of_nnsight(folder, **options):
    """nnsight's model of a tiny Llama on disk."""
    import nnsight
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = WordLevel({str(i): i for i in range(65)}, unk_token="0")
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), unk_token="0", bos_token="1", eos_token="1"
    )
    both("Llama")[0].source.save_pretrained(folder)
    return nnsight.TransformersModel(
        str(folder), task="text-generation", tokenizer=tokenizer, **options
    )


@pytest.mark.parametrize("dispatch", [False, True])
def test_a_model_of_nnsight_without_weights_gets_them(tmp_path, dispatch):
    model = of_nnsight(tmp_path, dispatch=dispatch)
    assert model.dispatched == dispatch
    traced, hooked, register = TracedLM.trace(model), both("Llama")[0], KINDS["a register"]
    assert model.dispatched and traced.cfg.device.type == "cpu"
    ids = torch.randint(0, 65, (2, 9))
    with torch.no_grad(), hooked.intervened(register), traced.intervened(register):
        torch.testing.assert_close(traced(ids), hooked(ids), rtol=1e-5, atol=1e-5)


def test_for_a_server_it_stays_without_weights_and_the_trace_asks_for_the_server(tmp_path):
    model = of_nnsight(tmp_path)
    traced = TracedLM.trace(model, remote=True)
    assert not model.dispatched and traced.envoy is model
    asked = handed_over(traced)
    with traced.intervened(KINDS["a register"]):  # this server has the weights
        here = both("Llama")[0]
        with torch.no_grad(), here.intervened(KINDS["a register"]):
            ids = torch.randint(0, 65, (2, 9))
            torch.testing.assert_close(traced(ids), here(ids), rtol=1e-5, atol=1e-5)
    assert [one.pop("remote") for one in asked] == [True]


def test_remote_is_all_that_differs_in_what_nnsight_is_asked():
    module, ids = copy.deepcopy(both("Llama")[0].source), torch.randint(0, 65, (2, 9))
    asked = []
    for remote in ({}, {"remote": True}, {"remote": "https://a.server"}):
        traced = TracedLM.trace(copy.deepcopy(module), **remote)
        calls = handed_over(traced)
        with traced.intervened(KINDS["a register"]), torch.no_grad():
            traced(ids)
            traced(ids, stop_at_layer=2)
        asked.append(calls)
    plain, ndif, other = asked
    assert all("remote" not in call for call in plain) and len(plain) == 2
    assert ndif == [{**call, "remote": True} for call in plain]
    assert other == [{**call, "remote": "https://a.server"} for call in plain]


def handed_over(traced) -> list[dict]:
    """What nnsight's `trace` is asked from now on; it runs here."""
    asked, trace_here = [], traced.envoy.trace

    def trace(ids, **named):
        asked.append({"ids": ids.tolist(), **named})
        return trace_here(ids, **{k: v for k, v in named.items() if k != "remote"})

    traced.envoy.__dict__["trace"] = trace
    return asked
