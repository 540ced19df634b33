"""The state taken along: Python and JSON give the numbers that the page shows."""

import json

import pytest

from tests.report.models import KINDS, pixels_for, tiny
from ttreg_interp.app.export import State
from ttreg_interp.app.look import MEAN_PATCH, View, look
from ttreg_interp.app.session import Explorer, first_picture
from ttreg_interp.app.settings import Settings
from ttreg_interp.app.upload import Picture
from ttreg_interp.interventions import Intervention

pytest.importorskip("skimage", reason="scikit-image holds the photographs")
SPEC = "testbed:planted"
REGISTER = Settings(neurons=Explorer().known_neurons(SPEC), n_registers=2)
CASES = [
    (REGISTER, View(11)),
    (REGISTER, View(4, head=2, query="patch 3,5", neuron=(4, 464))),
    (REGISTER, View(11, query="test-time register 1")),
    (REGISTER, View(11, query=MEAN_PATCH)),
    (Settings("nothing"), View(0, neuron=(0, 1))),
]


@pytest.fixture(scope="module")
def explorer():
    return Explorer()


def state_of(explorer: Explorer, settings: Settings, view: View) -> State:
    picture = first_picture()
    seen = explorer.look(SPEC, explorer.prepare(SPEC, picture), settings, view)
    return explorer.state(SPEC, picture, settings, view, seen)


def close(found: dict, shown: dict, side: int) -> None:
    """All numbers that one side shows, to 1e-6."""
    known = {name: pair[side] for name, pair in shown.items() if pair[side] is not None}
    assert found == pytest.approx(known, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("settings", "view"), CASES)
def test_the_python_gives_the_numbers_shown(explorer, settings, view, capsys):
    state = state_of(explorer, settings, view)
    names: dict = {}
    exec(state.python(), names)
    close(names["before"], state.numbers, side=0)
    close(names["after"], state.numbers, side=1)
    printed = capsys.readouterr().out
    assert all(f"{name}: {names['before'].get(name)} -> " in printed for name in names["after"])


@pytest.mark.parametrize(("settings", "view"), CASES)
def test_the_json_gives_the_numbers_shown(explorer, settings, view):
    body = json.loads(state_of(explorer, settings, view).to_json())
    assert body["schema"] == "ttreg_interp.explorer/1"
    intervention = Intervention.from_dict(body["intervention"])
    assert intervention == settings.intervention()
    asked = body["view"]
    asked["neuron"] = tuple(asked["neuron"]) if asked["neuron"] else None
    model, pixels = explorer.model(body["model"]), explorer.prepare(SPEC, first_picture())
    numbers = look(model, pixels, intervention, View(**asked)).numbers(View(**asked))
    assert {name: list(pair) for name, pair in numbers.items()} == body["numbers"]


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_every_layout_have_a_state(kind):
    model, settings = tiny(kind), Settings("added token alone")
    view = View(1, query="patch 1,2")
    seen = look(model, pixels_for(model, 1), settings.intervention(), view)
    state = State("x", "cpu", first_picture(), settings, view, seen.numbers(view))
    assert json.loads(state.to_json())["numbers"]["norm of the query"][0] > 0
    compile(state.python(), "snippet", "exec")


HOSTILE = "'); import os; os._exit(1) #${x}\n\"<script>.png"


def test_a_hostile_file_name_stays_a_string(explorer):
    state = state_of(explorer, REGISTER, View(11))
    picture = Picture(state.picture.image, HOSTILE)
    hostile = State("a'b", "cuda", picture, REGISTER, View(11), state.numbers)
    calls: list = []
    code = hostile.python().split("pixels =")[0].split("\n\n")[-1]

    class Recorder:
        def load(self, *arguments, **options):
            calls.append((*arguments, options))

    exec(code, {"tt": Recorder(), "read_image": calls.append})
    assert calls == [("a'b", {"device": "cuda"}), HOSTILE]
    assert json.loads(hostile.to_json())["image"]["name"] == HOSTILE
