"""HookedLM: what holds for a language model of every family."""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ttreg_interp.errors import LayoutError, UnsupportedModelError
from ttreg_interp.hooked import HookedLM, TextLayout, load, verify
from ttreg_interp.hooked.blocks import capped
from ttreg_interp.testbed.random_lm import FAMILIES, random_lm

TOLERANCE = 2e-6
every_family = pytest.mark.parametrize("family", FAMILIES)


@cache
def model(family: str) -> HookedLM:
    return HookedLM.wrap(random_lm(family))


def ids(n: int = 2, length: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(0, 50, (n, length), generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------- the forward


@every_family
def test_the_logits_are_those_of_the_source(family):
    hooked = model(family)
    found, expected = hooked(ids()), hooked.source(input_ids=ids()).logits
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


@every_family
def test_reading_every_hook_point_changes_nothing_but_the_rounding(family):
    hooked = model(family)
    expected = hooked(ids())
    output, cache = hooked.run_with_cache(ids())
    assert (output - expected).abs().max() <= TOLERANCE * expected.abs().max()
    assert set(cache.cache_dict) | {"blocks.0.attn.hook_result"} >= {
        name for name in hooked.hook_dict if "hook_result" not in name and "hook_mask" not in name
    }
    assert cache.layout == TextLayout(9)


@every_family
def test_a_hooked_language_model_keeps_its_contract(family):
    found = verify(model(family)).require()
    assert [check.name for check in found.checks] == [
        "parity", "identity", "causality", "pattern", "decomposition", "no look-ahead"
    ]  # fmt: skip


@pytest.mark.parametrize(("family", "dtype"), [("gpt2", torch.float64), ("llama", torch.bfloat16)])
def test_the_contract_holds_in_other_dtypes(family, dtype):
    """Not a Llama in double precision: its own norms round to single."""
    verify(load(f"testbed-lm:{family}", dtype=dtype)).require()


def test_a_model_that_looks_ahead_breaks_its_contract():
    hooked = HookedLM.wrap(random_lm("llama"))
    write = lambda mask, hook: mask.new_zeros(mask.shape)  # noqa: E731
    with hooked.hooks(fwd_hooks=[("blocks.0.attn.hook_mask", write)]):
        found = verify(hooked)
    assert [check.name for check in found.checks if not check.passed] == ["parity", "no look-ahead"]


@every_family
def test_a_batch_is_its_texts_one_by_one(family):
    hooked = model(family)
    whole = hooked(ids(3))
    single = torch.cat([hooked(row[None]) for row in ids(3)])
    torch.testing.assert_close(whole, single, rtol=1e-5, atol=1e-5)


@every_family
def test_a_pattern_is_causal_and_masked_scores_are_minus_infinity(family):
    hooked = model(family)
    _, cache = hooked.run_with_cache(ids())
    window = hooked.blocks[1].attn.parts.window or 9
    unseen = ~torch.ones(9, 9, dtype=torch.bool).tril().triu(1 - window)
    pattern, scores = cache["pattern", 1], cache["attn_scores", 1]
    torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern.sum(-1)))
    assert (pattern[..., unseen] == 0).all()
    assert (scores[..., unseen] == float("-inf")).all() and scores[..., ~unseen].isfinite().all()


@every_family
def test_queries_keys_and_values_are_what_the_weights_say(family):
    hooked = model(family)
    _, cache = hooked.run_with_cache(ids())
    attn, norm = hooked.blocks[1].attn, hooked.blocks[1].ln1
    x = cache["blocks.1.ln1.hook_normalized"] * norm.w + (0 if norm.b is None else norm.b)
    normed_after = family in ("qwen3", "gemma3_text")
    names = ("v",) if normed_after else ("q", "k", "v")
    for name in names:
        weight, bias = getattr(attn, f"W_{name.upper()}"), getattr(attn, f"b_{name.upper()}")
        expected = torch.einsum("btm,hmd->bthd", x, weight) + bias
        torch.testing.assert_close(cache[name, 1], expected, rtol=1e-4, atol=1e-5)


@every_family
def test_a_forward_from_a_layer_on_is_the_rest_of_the_whole_one(family):
    hooked = model(family)
    middle = hooked(ids(), stop_at_layer=1)
    torch.testing.assert_close(hooked(middle, start_at_layer=1), hooked(ids()))
    output, tokens = hooked(middle, return_type="both", start_at_layer=-2)
    assert torch.equal(output, capped(hooked.parts.head(tokens), hooked.parts.softcap))


@every_family
def test_a_copy_shares_nothing_and_does_the_same(family):
    hooked = model(family)
    twin = copy.deepcopy(hooked)
    assert torch.equal(twin(ids()), hooked(ids()))
    assert twin.parts.head.weight.data_ptr() != hooked.parts.head.weight.data_ptr()


@every_family
def test_gradients_reach_the_sources_weights(family):
    hooked = model(family)
    hooked(ids()).square().mean().backward()
    blocks = [p for name, p in hooked.source.named_parameters() if "norm" not in name]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in blocks if p.ndim > 1)
    hooked.zero_grad()


def test_the_neox_mlp_stands_beside_attention():
    hooked = model("gpt_neox")
    assert hooked.cfg.parallel_attn_mlp and not model("llama").cfg.parallel_attn_mlp
    _, cache = hooked.run_with_cache(ids())
    zeroed = [("blocks.0.hook_attn_out", lambda out, hook: torch.zeros_like(out))]
    seen = {}
    keep = ("blocks.0.hook_mlp_out", lambda out, hook: seen.update(out=out))
    hooked.run_with_hooks(ids(), fwd_hooks=[*zeroed, keep])
    torch.testing.assert_close(seen["out"], cache["mlp_out", 0])


# ---------------------------------------------------------------------- TransformerLens' bridge

SAME_THERE = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post", "mlp.hook_post")


def bridge_of(family: str):
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    source = random_lm(family)
    return build_bridge_from_module(
        source, architecture=type(source).__name__, hf_config=source.config, model_name=family
    )


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_transformer_lens_bridge_sees_the_same_activations(family):
    hooked, bridge = model(family), bridge_of(family)
    _, expected = bridge.run_with_cache(ids())
    _, found = hooked.run_with_cache(ids())
    for layer in range(3):
        for point in SAME_THERE:
            name = f"blocks.{layer}.{point}"
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5)
        pattern = f"blocks.{layer}.attn.hook_pattern"
        torch.testing.assert_close(found[pattern], expected[pattern], rtol=1e-4, atol=1e-5)


def test_the_bridge_takes_no_key_more_and_patches_no_stream_between_attention_and_mlp():
    bridge, seen = bridge_of("gpt2"), {}
    one_more = ("blocks.0.attn.hook_k", lambda k, hook: torch.cat((k[:, :1], k), dim=1))
    with pytest.raises(RuntimeError):
        bridge.run_with_hooks(ids(), fwd_hooks=[one_more])
    hooks = [
        ("blocks.0.hook_resid_mid", lambda resid, hook: torch.zeros_like(resid)),
        ("blocks.0.hook_mlp_out", lambda out, hook: seen.update(mlp=out)),
        ("blocks.0.hook_resid_post", lambda resid, hook: seen.update(post=resid)),
    ]
    bridge.run_with_hooks(ids(), fwd_hooks=hooks)
    assert not torch.allclose(seen["post"], seen["mlp"], atol=0.1)
    model("gpt2").run_with_hooks(ids(), fwd_hooks=hooks)
    assert torch.equal(seen["post"], seen["mlp"])


# ---------------------------------------------------------------------- texts and layout


class Letters:
    """A tokenizer of lower-case letters."""

    bos_token_id = 0

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [ord(letter) - ord("a") + 1 for letter in text]

    def decode(self, token_ids: list[int]) -> str:
        return "".join(chr(token + ord("a") - 1) for token in token_ids)


def test_texts_go_through_the_tokenizer_behind_bos():
    hooked = HookedLM.wrap(random_lm("gpt2"), Letters())
    assert hooked.to_tokens(["abc", "cab"]).tolist() == [[0, 1, 2, 3], [0, 3, 1, 2]]
    assert hooked.to_tokens("abc", prepend_bos=False).tolist() == [[1, 2, 3]]
    assert torch.equal(hooked("abc"), hooked(torch.tensor([[0, 1, 2, 3]])))
    assert hooked.to_single_token("c") == 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m("abc"), UnsupportedModelError, "no tokenizer, so it takes token ids only"),
        (lambda m: m(ids(1, 65)), LayoutError, "expected .batch, token. with 1 to 64 tokens"),
        (lambda m: m(ids(), stop_at_layer=4), LayoutError, "has 3 blocks"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(model("gpt2"))


def test_what_reads_images_refuses_a_language_model():
    from ttreg_interp.discovery import find_register_neurons

    with pytest.raises(UnsupportedModelError, match="reads texts, not images.*find_sink_neurons"):
        find_register_neurons(model("gpt2"), torch.zeros(2, 3, 8, 8))


def test_texts_of_different_lengths_do_not_stack():
    hooked = HookedLM.wrap(random_lm("gpt2"), Letters())
    with pytest.raises(LayoutError, match="Texts of 3 to 4 tokens do not stack"):
        hooked(["ab", "abc"])
    with pytest.raises(LayoutError, match="'ab' is 2 tokens"):
        hooked.to_single_token("ab")


# ---------------------------------------------------------------------- by name


def test_a_local_directory_is_loaded_without_a_hub(tmp_path):
    random_lm("llama").save_pretrained(tmp_path)
    hooked = load(f"hf-lm:{tmp_path}")
    torch.testing.assert_close(hooked(ids()), model("llama")(ids()))
    assert hooked.tokenizer is None and hooked.cfg.model_name == f"hf-lm:{tmp_path}"
    assert not torch.equal(load(f"hf-lm:{tmp_path}?random=1")(ids()), hooked(ids()))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf-lm:nowhere?random", "no local directory with a config.json"),
        ("tl:no-such-model", "no name that TransformerLens knows"),
        ("testbed-lm:bloom", "none of the embedded language models"),
        ("tl:gpt2?random", "has no .random"),
    ],
)
def test_names_that_lead_nowhere_are_refused(spec, message):
    with pytest.raises(UnsupportedModelError, match=message):
        load(spec)
    with pytest.raises(UnsupportedModelError, match="is a language model; leave out image_size"):
        load("testbed-lm:gpt2", image_size=64)


STORIES = Path(__file__).resolve().parents[2] / ".." / "shared" / "assets" / "stories260K"


@pytest.mark.skipif(not STORIES.is_dir(), reason="no ../shared/assets/stories260K")
def test_a_llama2c_checkpoint_tells_stories():
    from ttreg_interp.metrics.language import language_loss

    hooked = load(f"llama2c:{STORIES / 'stories260K.bin'}")
    text = "Once upon a time, there was a little girl named Lily."
    tokens = hooked.to_tokens(text)
    assert hooked.tokenizer.decode(tokens[0].tolist()) == text
    with torch.no_grad():
        for _ in range(12):
            tokens = torch.cat((tokens, hooked(tokens)[:, -1:].argmax(-1)), dim=1)
    assert hooked.tokenizer.decode(tokens[0].tolist()).startswith(f"{text} She loved to")
    assert language_loss(hooked, [text, text], length=16).loss().estimate < 1
