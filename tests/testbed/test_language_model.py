"""Bigram-Backcopy: its rules, the attention kernels, and the language model that is shipped."""

import json
from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttreg_interp.errors import DataError, UnsupportedModelError
from ttreg_interp.hooked.language import HookedLM
from ttreg_interp.testbed.language import SHIPPED, LanguageConfig, backcopy_lm, train, untrained
from ttreg_interp.testbed.language_arms import ArmMeasures, measure_arms, sink_layer
from ttreg_interp.testbed.language_attention import PATTERNS, use_kernel
from ttreg_interp.testbed.language_measures import measure
from ttreg_interp.testbed.language_task import BackcopyTask

COPY = BackcopyTask(in_context=False)
LEARN = BackcopyTask()


def texts(task: BackcopyTask, n: int = 200, seed: int = 5) -> torch.Tensor:
    return task.sample(n, torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------- task


def test_a_text_is_bos_and_words():
    ids = texts(LEARN)
    assert ids.shape == (200, 49)
    assert (ids[:, 0] == LEARN.bos).all() and (ids[:, 1:] < LEARN.n_words).all()


def test_behind_a_trigger_stands_what_stood_before_it():
    ids = texts(COPY)
    certain = COPY.certain(ids)[:, 2:-1]
    assert certain.any()
    assert (ids[:, 3:][certain] == ids[:, 1:-2][certain]).all()


def test_in_context_a_trigger_has_one_answer_a_text_and_others_in_other_texts():
    ids = texts(LEARN)
    answers: dict[tuple[int, int], set[int]] = {}
    for text, row in enumerate(ids.tolist()):
        for word, after in zip(row, row[1:], strict=False):
            if word in LEARN.triggers.tolist():
                answers.setdefault((text, word), set()).add(after)
    assert all(len(found) == 1 for found in answers.values())
    first = int(LEARN.triggers[0])
    assert len({min(found) for (_, word), found in answers.items() if word == first}) > 10


def test_an_answer_is_certain_from_the_second_occurrence_on():
    trigger, other = (
        int(LEARN.triggers[0]),
        int((~torch.isin(torch.arange(32), LEARN.triggers)).nonzero()[0]),
    )
    ids = torch.tensor([[LEARN.bos, trigger, other, trigger, other, other]])
    assert LEARN.certain(ids).tolist() == [[False, False, False, True, False, False]]
    assert LEARN.free(ids).tolist() == [[False, False, True, False, True, True]]


def test_elsewhere_the_next_word_is_a_bigram_draw():
    ids = texts(LEARN, 3000)
    word = int(
        LEARN.frequencies.argsort(descending=True)[LEARN.n_triggers]
    )  # most frequent of the rest
    after = ids[:, 1:][ids[:, :-1] == word]
    found = torch.bincount(after, minlength=32).float() / len(after)
    assert len(after) > 3000
    torch.testing.assert_close(found, LEARN.transitions[word], rtol=0, atol=0.03)


def test_triggers_are_the_most_frequent_words_and_frequencies_are_stationary():
    torch.testing.assert_close(LEARN.frequencies @ LEARN.transitions, LEARN.frequencies)
    others = ~torch.isin(torch.arange(32), LEARN.triggers)
    assert LEARN.frequencies[LEARN.triggers].min() >= LEARN.frequencies[others].max()
    torch.testing.assert_close(LEARN.transitions.sum(dim=1), torch.ones(32))


def test_equal_seeds_give_equal_texts():
    assert torch.equal(texts(LEARN, seed=1), texts(BackcopyTask(), seed=1))
    assert not torch.equal(texts(LEARN, seed=1), texts(LEARN, seed=2))


@pytest.mark.parametrize("wrong", [{"n_triggers": 32}, {"length": 1}, {"concentration": 0.0}])
def test_a_task_that_cannot_be_is_refused(wrong):
    with pytest.raises(DataError, match="1 to n_words - 1 triggers"):
        BackcopyTask(**wrong)


# ---------------------------------------------------------------------- kernels

scores_of = st.lists(st.floats(-8, 8), min_size=2, max_size=6).map(torch.tensor)


@given(scores_of)
def test_off_by_one_is_softmax_with_a_key_of_logit_zero(scores):
    found = PATTERNS["softmax_off_by_one"](scores[None, None, None])[0, 0, 0]
    expected = scores.exp() / (1 + scores.exp().sum())
    torch.testing.assert_close(found, expected)


@given(scores_of)
def test_patterns_stay_between_none_and_all(scores):
    for kernel in ("softmax", "softmax_off_by_one", "sigmoid", "clipped"):
        pattern = PATTERNS[kernel](scores[None, None, None])
        assert (pattern >= 0).all() and (pattern <= 1).all()


@pytest.mark.parametrize("kernel", PATTERNS)
def test_hidden_keys_get_nothing_and_a_model_does_not_look_ahead(kernel):
    scores = torch.tensor([[[[0.3, -0.4, float("-inf")]]]])
    assert PATTERNS[kernel](scores)[..., 2] == 0
    model = untrained(LanguageConfig(kernel=kernel, width=8, depth=1))
    ids = texts(LEARN, 2)
    changed = ids.clone()
    changed[:, 30] = (changed[:, 30] + 1) % 32
    one, other = (model(input_ids=x).logits.detach() for x in (ids, changed))
    torch.testing.assert_close(one[:, :30], other[:, :30])
    assert not torch.allclose(one[:, 30:], other[:, 30:])


@pytest.mark.parametrize("kernel", ["gated", "bias"])
def test_kernels_with_parameters_begin_as_softmax_or_near_and_learn(kernel):
    model = untrained(LanguageConfig(kernel=kernel, width=8, depth=1))
    model(input_ids=texts(LEARN, 2)).logits.square().sum().backward()
    names = {"gated": ["gate_weight", "gate_bias"], "bias": ["k_bias", "v_bias"]}[kernel]
    attn = model.transformer.h[0].attn
    assert all(getattr(attn, name).grad.abs().sum() > 0 for name in names)
    if kernel == "gated":
        plain = untrained(LanguageConfig(width=8, depth=1))
        expected = plain(input_ids=texts(LEARN, 2)).logits
        torch.testing.assert_close(model(input_ids=texts(LEARN, 2)).logits, expected)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(
        UnsupportedModelError, match="No attention kernel 'linear'; there are softmax"
    ):
        use_kernel(untrained(LanguageConfig(width=8, depth=1)), "linear")


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_training_lowers_the_loss_and_is_the_same_twice(optimiser):
    config = LanguageConfig(width=16, depth=1, steps=40, batch=8, optimiser=optimiser, measured=2)
    _, history = train(config)
    assert [row.step for row in history] == [0, 20, 40]
    assert history[-1].loss_free < history[0].loss_free - 0.1
    assert train(config)[1] == history


# ---------------------------------------------------------------------- the shipped model


@pytest.fixture(scope="module")
def shipped():
    return backcopy_lm()


def test_the_shipped_model_has_a_sink_where_it_has_nothing_to_copy(shipped):
    found = measure(shipped, LEARN, texts(LEARN, 64))
    assert found.accuracy_certain > 0.95
    assert found.loss_free < LEARN.bigram_entropy + 0.1
    layer = found.sink_free.index(max(found.sink_free))
    assert found.sink_free[layer] > 0.9
    assert found.sink_certain[layer] < 0.01
    assert found.drain[layer] < 0.3
    assert 2 < max(found.norm_ratio) < 4  # a large norm, by no means a massive activation


def test_the_shipped_model_is_what_its_history_says(shipped):
    history = json.loads((SHIPPED / "history.json").read_text())
    assert history["config"]["seed"] == 2 and history["config"]["steps"] == 2500
    size = (SHIPPED / "model.safetensors").stat().st_size
    assert size < 2_000_000
    last = history["history"][-1]
    found = measure(shipped, LEARN, texts(LEARN, 128))
    assert found.sink_free[2] == pytest.approx(last["sink_free"][2], abs=0.02)
    assert found.loss_free == pytest.approx(last["loss_free"], abs=0.05)


def runs(**config) -> list[dict]:
    lines = (SHIPPED / "histories.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return [run for run in found if config.items() <= run["config"].items()]


def test_histories_of_five_seeds_are_kept_as_they_came():
    full = runs(kernel="softmax", optimiser="adam", steps=2500)
    assert [run["config"]["seed"] for run in full] == [0, 1, 2, 3, 4]
    assert all(len(run["history"]) == 11 for run in full)
    names = [field.name for field in fields(ArmMeasures)]
    for run in full:
        assert all(list(arm) == names for arm in run["arms"].values())
        assert run["arms"]["intact"]["loss_free"] == pytest.approx(2.41, abs=0.01)


def test_a_hooked_model_agrees_with_the_shipped_one(shipped):
    ids, model = texts(LEARN, 8), HookedLM.wrap(shipped)
    torch.testing.assert_close(model(ids), shipped(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert sink_layer(model, ids) == 2


def test_the_arms_of_the_shipped_model_are_those_of_its_history(shipped):
    """k' and v' stand in for the sink; so does a register that the neurons are moved to, and no other."""
    (kept,) = runs(kernel="softmax", optimiser="adam", steps=2500, seed=2)
    found = measure_arms(shipped, LEARN, texts(LEARN, 64, seed=99))
    assert list(found) == list(kept["arms"])
    for name, arm in found.items():
        assert arm.sink == pytest.approx(kept["arms"][name]["sink"], abs=0.05)
        assert arm.norm_added == pytest.approx(kept["arms"][name]["norm_added"], abs=0.1)
    rise = {name: arm.loss_free - found["intact"].loss_free for name, arm in found.items()}
    assert rise["sink hidden"] > 0.05 and rise["sink hidden, register (random neurons)"] > 0.05
    assert abs(rise["sink hidden, k' and v'"]) < 0.003 and rise["sink hidden, register"] < 0.01
    moved = found["register, seen from the sink's layer"]
    assert moved.sink_added > 0.6 > 0.3 > moved.sink and moved.norm < 1.2 < 1.5 < moved.norm_added
    seen_at_once = found["token of zeros, seen from layer 0"].loss_certain
    late = found["token of zeros, seen from the sink's layer"].loss_certain
    assert seen_at_once > late + 0.01


def test_a_model_without_an_outlier_has_no_registers_to_measure():
    model = untrained(LanguageConfig(width=16, depth=2))
    found = measure_arms(model, LEARN, texts(LEARN, 16))
    assert "intact" in found and not any("neurons" in name for name in found)
