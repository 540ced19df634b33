"""The benchmarks run, and divide by the right thing; nothing here judges a time."""

import pytest
import torch

from benchmarks import ours, peers
from benchmarks.memory import retained_mib
from benchmarks.models import SIZES, Size, batch, source, with_one_token_more
from benchmarks.run import EAGER, PLAIN, PLAIN_LONGER, base_of, chosen, table
from benchmarks.timing import interleaved, ratio
from ttreg_interp.hooked import HookedViT

MICRO = Size(d_model=32, depth=8, heads=2, patch=16, pixels=32, batch=2)


@pytest.fixture(scope="module")
def pixels():
    return batch(MICRO)


@pytest.fixture(scope="module")
def micro():
    return HookedViT.wrap(source(MICRO))


def test_every_arm_runs_in_every_round():
    ran = []
    arms = {name: lambda name=name: ran.append(name) for name in "abc"}
    seconds = interleaved(arms, rounds=2)
    assert "".join(ran) == "abcbcacab"
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys("abc", 2)


def test_a_ratio_is_of_medians_and_its_spread_of_rounds():
    found = ratio([2.0, 3.0, 40.0], [1.0, 3.0, 10.0])
    assert (found.median, found.low, found.high) == (1.0, 1.5, 3.0)


@torch.no_grad()
def test_the_plain_models_hold_the_same_weights(micro, pixels):
    plain = source(MICRO)(pixels).logits
    assert torch.equal(micro(pixels), plain)
    torch.testing.assert_close(source(MICRO, "eager")(pixels).logits, plain)
    assert not torch.equal(with_one_token_more(source(MICRO))(pixels).logits, plain)


@torch.no_grad()
def test_a_zero_token_in_the_plain_model_is_the_extra_token_of_the_hooked_one(pixels):
    longer = with_one_token_more(source(MICRO))(pixels).logits
    extra = ours.intervened(HookedViT.wrap(source(MICRO)), pixels)["extra token"]()
    torch.testing.assert_close(extra, longer)


@torch.no_grad()
def test_all_peers_keep_the_neurons_that_the_cache_keeps(micro, pixels):
    _, cache = micro.run_with_cache(pixels, names_filter="blocks.3.mlp.hook_post")
    mine = cache["blocks.3.mlp.hook_post"]
    _, bridged = peers.bridge(MICRO, pixels)["TransformerBridge, all neurons"]()
    traced = peers.traced(MICRO, pixels)["nnsight, all neurons"]()
    hooked = peers.plain_hooks(MICRO, pixels)["PyTorch hooks, all neurons"]()
    theirs = [
        hooked["vit.layers.3.mlp.activation_fn"],
        traced["vit.layers.3.mlp.activation_fn"],
        next(value for name, value in bridged.items() if "3.mlp" in name),
    ]
    for neurons in theirs:
        torch.testing.assert_close(neurons, mine)


@torch.no_grad()
def test_the_arms_run(micro, pixels):
    arms = ours.seen(micro, pixels) | ours.intervened(micro, pixels) | ours.fast(MICRO, pixels)
    for work in arms.values():
        work()


def test_an_added_token_is_not_held_against_an_intervention():
    names = dict.fromkeys([PLAIN, PLAIN_LONGER, EAGER])
    assert base_of("test-time register", names) == PLAIN_LONGER
    assert base_of("register, ONNX", names) == PLAIN_LONGER
    assert base_of("pattern of all layers", names) == EAGER
    assert base_of("attention bias", names) == PLAIN
    assert base_of("scoring", {"plain forward": None}) == "plain forward"
    assert "| b | a | 2.000" in table("s", {"a": [1.0], "b": [2.0]})


def test_arms_are_chosen_by_words_and_keep_their_bases():
    names = dict.fromkeys([PLAIN, EAGER, "fast_cpu, float32", "attention bias"])
    assert set(chosen(names, ("fast",))) == {PLAIN, EAGER, "fast_cpu, float32"}
    assert set(chosen(names, ())) == set(names)


def test_shared_storage_is_counted_once():
    kept = torch.zeros(2**18)
    assert retained_mib([kept, kept[3:], torch.zeros(2**18)]) == 2.0
    assert set(SIZES) == {"base", "long", "tiny"}
