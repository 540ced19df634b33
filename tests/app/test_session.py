"""What the page shows equals what the model computes."""

import numpy as np
import pytest
import torch

from tests.app.models import SPEC, explorer, picture
from tests.report.models import KINDS, pixels_for, tiny
from ttreg_interp.app.look import coloured, drawing_of, look
from ttreg_interp.app.session import Explorer
from ttreg_interp.app.settings import Settings
from ttreg_interp.errors import InterventionError, UnsupportedModelError
from ttreg_interp.interventions import Empty, NeuronSet, TestTimeRegister

pytest.importorskip("skimage", reason="scikit-image holds the photographs")


@pytest.fixture(scope="module")
def session():
    return explorer()


@pytest.fixture(scope="module")
def pixels(session):
    return session.prepare(SPEC, picture())[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("intervention", [Empty(), TestTimeRegister({0: [3]}, n_registers=2)])
def test_maps_are_those_of_the_cache(kind, intervention):
    model = tiny(kind)
    seen = look(model, pixels_for(model, 1), intervention)
    with model.intervened(intervention):
        _, cache = model.run_with_cache(pixels_for(model, 1))
    layout = cache.layout
    norms = cache["resid_post", 1][0].norm(dim=-1)
    torch.testing.assert_close(seen.norms(1)[1], layout.grid(norms))
    queries = layout.cls if layout.n_cls else layout.patches
    rows = cache["pattern", 1][0][:, queries].mean(dim=(0, 1))
    torch.testing.assert_close(seen.attention(1)[1], layout.grid(rows))
    assert seen.norms(1)[1].shape == (layout.height, layout.width)


def test_a_register_cleans_the_maps_of_the_planted_model(session, pixels):
    last = session.model(SPEC).cfg.n_layers - 1
    seen = session.look(SPEC, pixels, Settings(neurons=session.known_neurons(SPEC)))
    before, after = seen.norms(last)
    assert before.max() > 10 * before.median()
    assert after.max() < 2 * after.median()
    assert float(seen.after.register_attention[last].mean()) > 0.9
    assert "attention to added tokens" in seen.words(last)
    assert f"{float(after.max() / after.median()):.2f}" in seen.words(last)


def test_nothing_changes_nothing(session, pixels):
    seen = session.look(SPEC, pixels, Settings("nothing"))
    assert seen.output_change == 0
    assert torch.equal(*seen.norms(0))
    assert "added tokens" not in seen.words(0)


def test_outliers_move_to_where_is_drawn(session, pixels):
    grid = session.grid(SPEC, pixels)
    neurons = session.known_neurons(SPEC)
    seen = session.look(SPEC, pixels, Settings("move outliers", neurons, patches=((0, 3),)))
    assert int(seen.norms(5)[1].argmax()) == 0 * grid[1] + 3


def test_an_intervention_that_does_not_fit_is_lifted_again(session, pixels):
    with pytest.raises(InterventionError, match="Layer 99, neuron 1 is not in"):
        session.look(SPEC, pixels, Settings(neurons=NeuronSet.of({99: [1]})))
    assert session.look(SPEC, pixels, Settings("nothing")).output_change == 0


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


def test_the_seen_picture_covers_the_grid(session):
    shown = session.prepare(SPEC, picture().resize((300, 200)))[1]
    assert shown.width == shown.height == 448


def test_a_pair_has_one_colour_scale():
    pytest.importorskip("matplotlib", reason="matplotlib has the colours")
    small, large = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 4.0]])
    left, right = coloured((small, large))
    assert left.shape == right.shape == (224, 448, 3)
    assert np.array_equal(left[0, -1], right[0, 0])  # both are 1
    assert right[0, -1].tolist() == [253, 231, 36]  # the largest is viridis' end
    assert left[0, 0].tolist() == [68, 1, 84]


def test_a_drawing_is_where_some_layer_is_not_transparent():
    layers = [np.zeros((2, 3, 4), np.uint8) for _ in range(2)]
    layers[0][0, 1, 3] = layers[1][1, 2, 3] = 200
    assert drawing_of(layers).nonzero().tolist() == [[0, 1], [1, 2]]
    assert drawing_of([]) is None
