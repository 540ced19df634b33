"""What the page shows equals what the model computes."""

import pytest
import torch

from tests.app.models import SPEC, explorer, picture
from tests.report.models import KINDS, pixels_for, tiny
from ttreg_interp.app.look import MEAN_PATCH, View, look
from ttreg_interp.app.ranking import rank_neurons
from ttreg_interp.app.session import Explorer
from ttreg_interp.app.settings import Settings
from ttreg_interp.errors import DataError, InterventionError, UnsupportedModelError
from ttreg_interp.interventions import Empty, NeuronSet, TestTimeRegister

pytest.importorskip("skimage", reason="scikit-image holds the photographs")
LAST = View(5)


@pytest.fixture(scope="module")
def session():
    return explorer()


@pytest.fixture(scope="module")
def pixels(session):
    return session.prepare(SPEC, picture())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("intervention", [Empty(), TestTimeRegister({0: [3]}, n_registers=2)])
@pytest.mark.parametrize("head", [None, 1])
def test_norms_attention_and_neurons_are_those_of_the_cache(kind, intervention, head):
    model = tiny(kind)
    seen = look(model, pixels_for(model, 1), intervention, View(1, neuron=(0, 3))).intervened
    with model.intervened(intervention):
        _, cache = model.run_with_cache(pixels_for(model, 1))
    layout, pattern = cache.layout, cache["pattern", 1][0]
    pattern = pattern.mean(dim=0) if head is None else pattern[head]
    assert seen.layout == layout
    torch.testing.assert_close(seen.norms, cache["resid_post", 1][0].norm(dim=-1))
    torch.testing.assert_close(seen.neuron, cache["post", 0][0, :, 3])
    for row, name in enumerate(layout.row_names()):
        torch.testing.assert_close(seen.attention(View(1, head, name)), pattern[row])
    mean = pattern[layout.patches].mean(dim=0)
    torch.testing.assert_close(seen.attention(View(1, head, MEAN_PATCH)), mean)


def test_a_register_is_a_query_of_one_side_only(session, pixels):
    settings = Settings(neurons=session.known_neurons(SPEC))
    seen = session.look(SPEC, pixels, settings, LAST)
    register = View(5, query="test-time register 0")
    assert seen.queries() == ["CLS", "test-time register 0", MEAN_PATCH]
    assert seen.intact.attention(register) is None
    assert seen.numbers(register)["largest attention to one patch"][0] is None
    with pytest.raises(DataError, match="There is no token 'patch 99,0'. Click a patch, or write"):
        seen.numbers(View(5, query="patch 99,0"))


def test_a_register_cleans_the_numbers_of_the_planted_model(session, pixels):
    settings = Settings(neurons=session.known_neurons(SPEC))
    numbers = session.look(SPEC, pixels, settings, LAST).numbers(LAST)
    intact, register = numbers["largest / median patch norm"]
    assert intact > 10
    assert register < 2
    assert numbers["attention to added tokens"][1] > 0.9
    assert "norm of the query" in numbers
    assert "largest |activation| of the neuron" not in numbers


def test_nothing_changes_nothing(session, pixels):
    seen = session.look(SPEC, pixels, Settings("nothing"), View(0))
    assert seen.output_change == 0
    assert torch.equal(seen.intact.norms, seen.intervened.norms)
    assert "attention to added tokens" not in seen.numbers(View(0))


def test_outliers_move_to_where_is_drawn(session, pixels):
    neurons = session.known_neurons(SPEC)
    settings = Settings("move outliers", neurons, patches=((0, 3),))
    assert int(session.look(SPEC, pixels, settings, LAST).intervened.patch_norms.argmax()) == 3


def test_an_intervention_that_does_not_fit_is_lifted_again(session, pixels):
    with pytest.raises(InterventionError, match="Layer 99, neuron 1 is not in"):
        session.look(SPEC, pixels, Settings(neurons=NeuronSet.of({99: [1]})), LAST)
    with pytest.raises(InterventionError, match="Layer 0, neuron 9999 is not in"):
        session.look(SPEC, pixels, Settings("nothing"), View(0, neuron=(0, 9999)))
    assert session.look(SPEC, pixels, Settings("nothing"), LAST).output_change == 0


def test_the_planted_neurons_rank_first_on_one_image(session, pixels):
    truth = set(session.known_neurons(SPEC))
    ranked = session.rank(SPEC, pixels)
    assert {row[:2] for row in ranked[: len(truth)]} == truth
    scores = [score for *_, score in ranked]
    assert scores == sorted(scores, reverse=True)
    assert scores[len(truth)] < 0.01 * scores[len(truth) - 1]


def test_an_image_without_outliers_has_no_ranking():
    model = tiny()
    with pytest.raises(DataError, match="No image has an outlier at this threshold"):
        rank_neurons(model, pixels_for(model, 1))


def test_a_page_that_others_may_open_loads_no_other_model():
    closed = explorer(may_load=False)
    assert closed.model(SPEC).spec == SPEC
    with pytest.raises(UnsupportedModelError, match="This page shows small planted only"):
        closed.model("hf:somebody/else")


def test_embedded_models_know_their_neurons_and_others_have_none():
    from ttreg_interp.testbed import planted_vit

    page = Explorer()
    assert page.known_neurons("testbed:planted") == NeuronSet.of(planted_vit().truth)
    third = NeuronSet.of(planted_vit(seed=3, layout="open_clip").truth)
    assert page.known_neurons("testbed:planted/open_clip/tiny/3") == third
    assert len(page.known_neurons("timm:test_vit?random")) == 0
