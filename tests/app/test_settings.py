"""Settings: what they mean as an intervention, as Python, and as JSON."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ttreg_interp
from ttreg_interp.app.settings import (
    KINDS,
    Settings,
    parse_neurons,
    written_neurons,
)
from ttreg_interp.errors import InterventionError
from ttreg_interp.interventions import (
    Empty,
    ExtraTokens,
    Intervention,
    MoveNeurons,
    NeuronSet,
    TestTimeRegister,
    ZeroNeurons,
)

NEURONS = NeuronSet.of({2: [93, 551], 4: [464]})
CASES = [
    (Settings("nothing", NEURONS), Empty()),
    (Settings("added token alone", NEURONS, n_registers=3), ExtraTokens(3)),
    (Settings("zero the neurons", NEURONS), ZeroNeurons(NEURONS)),
    (Settings("move outliers", NEURONS, patches=((0, 1),)), MoveNeurons(NEURONS, to=((0, 1),))),
    (Settings("test-time register", NEURONS), TestTimeRegister(NEURONS)),
    (
        Settings("test-time register", NEURONS, 2, "reference", "mean"),
        TestTimeRegister(NEURONS, n_registers=2, semantics="reference", fill="mean"),
    ),
]


def test_every_kind_has_a_case():
    assert {settings.kind for settings, _ in CASES} == set(KINDS)


@pytest.mark.parametrize(("settings", "expected"), CASES, ids=lambda case: type(case).__name__)
def test_settings_are_this_intervention_and_its_json_reads_back(settings, expected):
    intervention = settings.intervention()
    assert intervention == expected
    assert Intervention.from_json(intervention.to_json()) == expected


@pytest.mark.parametrize(("settings", "expected"), CASES, ids=lambda case: type(case).__name__)
def test_the_python_makes_the_same_intervention(settings, expected):
    assert eval(settings.python(), {"tt": ttreg_interp, "MoveNeurons": MoveNeurons}) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings("zero the neurons"), "No neurons are on, so 'zero the neurons' has nothing"),
        (Settings("test-time register"), "Tick some, or write them as"),
        (Settings("move outliers", NEURONS), "Nothing is drawn, so outliers have nowhere to go"),
        (Settings("test-time register", NEURONS, 0), "n_tokens must be >= 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    for asked in (settings.intervention, settings.python):
        with pytest.raises(InterventionError, match=message):
            asked()


@given(
    st.dictionaries(st.integers(0, 40), st.sets(st.integers(0, 9999), min_size=1), max_size=4).map(
        NeuronSet.of
    )
)
def test_written_neurons_are_read_back(neurons):
    assert parse_neurons(written_neurons(neurons)) == neurons


@pytest.mark.parametrize("text", ["93", "2; 93", "a: 1", "2: -1", "2: 1.5", "²: 1", "<b>", "2:"])
def test_other_forms_are_refused(text):
    with pytest.raises(InterventionError, match="names no neurons. Write 'layer: neuron"):
        parse_neurons(text)
