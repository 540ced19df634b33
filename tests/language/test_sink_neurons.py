"""Register neurons of language models: planted ones are found, others are not made up."""

from functools import cache

import pytest
import torch

from ttreg_interp.discovery.sink_neurons import SinkNeurons, SinkOptions, find_sink_neurons
from ttreg_interp.errors import DataError, InterventionError
from ttreg_interp.hooked import HookedLM
from ttreg_interp.interventions import TestTimeRegister
from ttreg_interp.testbed.planted_lm import FAMILIES, planted_lm
from ttreg_interp.testbed.random_lm import random_lm

every_family = pytest.mark.parametrize("family", FAMILIES)


@cache
def found_in(family: str) -> SinkNeurons:
    planted = planted_lm(family)
    return find_sink_neurons(HookedLM.wrap(planted.module), planted.texts(16, 24))


@every_family
def test_the_planted_neurons_are_found_and_wrote_the_outlier(family):
    found, truth = found_in(family), planted_lm(family).truth
    assert found.by_layer() == truth
    assert found.share == pytest.approx(1.0, abs=0.01)
    assert found.ranking[0][2] > 100 * abs(found.ranking[2][2])


@every_family
def test_a_register_keeps_the_loss_that_zeroing_costs(family):
    arms = found_in(family).arms
    assert arms["intact"].peak > 100 and arms["random"].peak > 100
    assert arms["zeroed"].peak < 4 and arms["register"].peak < 4
    rise = {name: arm.loss.estimate - arms["intact"].loss.estimate for name, arm in arms.items()}
    assert rise["zeroed"] > 0.05 and rise["register"] < 0.4 * rise["zeroed"]


def test_a_model_whose_first_token_is_ordinary_has_none():
    planted = planted_lm("llama")
    found = find_sink_neurons(HookedLM.wrap(random_lm("llama")), planted.texts(8, 12) % 50)
    assert not len(found.neurons) and not found.arms
    assert "No register neurons" in str(found) and found.peak < 4


def test_interventions_take_what_is_found():
    found = found_in("gpt2")
    assert TestTimeRegister(found).neurons == found.neurons
    assert (
        "wrote 100% of the outliers' distance" in str(found) and found.to_dict()["arms"]["register"]
    )


def test_bad_input_is_told():
    planted = planted_lm("llama")
    model = HookedLM.wrap(planted.module)
    with pytest.raises(
        DataError, match="Found 4 texts with a candidate .the first token. among 4; give at least 8"
    ):
        find_sink_neurons(model, planted.texts(4, 8))
    with pytest.raises(DataError, match="score='best' is one of abs, signed"):
        SinkOptions(score="best")


# ---------------------------------------------------------------------- sinks that are no first tokens

DELIMITER = 5
CARRIERS = {"delimiter": (DELIMITER,), "first token and delimiter": (0, DELIMITER)}


@cache
def with_delimiters(family: str, carriers: tuple[int, ...]):
    planted = planted_lm(family, carriers=carriers)
    return planted, HookedLM.wrap(planted.module), planted.texts(16, 26)


@every_family
@pytest.mark.parametrize("tokens", ["any", (DELIMITER,), (9, DELIMITER)], ids=str)
@pytest.mark.parametrize("carriers", CARRIERS.values(), ids=CARRIERS)
def test_the_neurons_of_a_delimiter_are_found_by_its_norm_or_its_id(family, carriers, tokens):
    planted, model, texts = with_delimiters(family, carriers)
    found = find_sink_neurons(model, texts, SinkOptions(tokens=tokens))
    assert found.by_layer() == planted.truth and found.share == pytest.approx(1.0, abs=0.02)
    expected = carriers if tokens == "any" else (DELIMITER,)
    assert set(found.outliers) == {str(token) for token in expected}
    assert found.outliers[str(DELIMITER)] == 2 * 12  # two in each of the texts that are scored


@every_family
def test_the_first_token_says_nothing_where_a_delimiter_carries_alone(family):
    _, model, texts = with_delimiters(family, CARRIERS["delimiter"])
    found = find_sink_neurons(model, texts)
    assert not len(found.neurons)
    assert "the norm of the first token is at most" in str(found)
    with pytest.raises(InterventionError, match="register without neurons"):
        found.register()


@every_family
def test_the_register_of_a_delimiter_holds_the_stored_mean_and_tells_no_token_of_later_ones(family):
    planted, model, texts = with_delimiters(family, CARRIERS["first token and delimiter"])
    found = find_sink_neurons(model, texts, SinkOptions(tokens=(DELIMITER,)))
    ((layer, neurons),) = planted.truth.items()
    changed = texts.clone()
    changed[:, 20:] = 9
    with model.intervened(found.register()):
        logits, cache = model.run_with_cache(texts)
        others = model(changed)
    post = cache["post", layer][..., list(neurons)]
    assert (post[:, 1:] == 0).all()
    torch.testing.assert_close(post[:, 0], torch.tensor([found.means] * 16))
    torch.testing.assert_close(logits[:, :20], others[:, :20], rtol=1e-4, atol=1e-4)


@every_family
def test_a_register_takes_over_what_first_token_and_delimiters_did(family):
    _, model, texts = with_delimiters(family, CARRIERS["first token and delimiter"])
    arms = find_sink_neurons(model, texts, SinkOptions(tokens="any")).arms
    rise = {name: arm.loss.estimate - arms["intact"].loss.estimate for name, arm in arms.items()}
    assert arms["intact"].peak > 100 and arms["register"].peak < 4
    assert rise["zeroed"] > 0.05 and rise["register"] < 0.6 * rise["zeroed"]


def test_a_register_may_stay_hidden_until_a_layer():
    found = found_in("gpt2")
    assert found.register(2) == TestTimeRegister(found.neurons, visible_from_layer=2)


def test_what_counts_as_an_outlier_is_a_choice():
    planted = planted_lm("llama")
    model = HookedLM.wrap(planted.module)
    assert not len(find_sink_neurons(model, planted.texts(8, 12), SinkOptions(emerged=1e4)).neurons)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": "last"}, "tokens='last' is 'first', 'any' or a tuple of token ids"),
        ({"tokens": ()}, "a tuple of token ids"),
        ({"emerged": 1.0}, "emerged=1.0 is above 1"),
    ],
)
def test_wrong_choices_are_told(options, message):
    with pytest.raises(DataError, match=message):
        SinkOptions(**options)


def test_texts_without_the_token_are_left_out():
    _, model, texts = with_delimiters("llama", CARRIERS["delimiter"])
    with pytest.raises(DataError, match=r"Found 0 texts with a candidate .*ids \[0\]"):
        find_sink_neurons(model, texts[:, 1:], SinkOptions(tokens=(0,)))
