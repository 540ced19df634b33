"""Register neurons of language models: planted ones are found, others are not made up."""

from functools import cache

import pytest

from ttreg_interp.discovery.sink_neurons import SinkNeurons, SinkOptions, find_sink_neurons
from ttreg_interp.errors import DataError
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
    assert "wrote 100% of its distance" in str(found) and found.to_dict()["arms"]["register"]


def test_bad_input_is_told():
    planted = planted_lm("llama")
    model = HookedLM.wrap(planted.module)
    with pytest.raises(DataError, match="Found 4 texts; give at least 8"):
        find_sink_neurons(model, planted.texts(4, 8))
    with pytest.raises(DataError, match="score='best' is one of abs, signed"):
        SinkOptions(score="best")
