"""Figures: drawn for every grid, one colour scale a pair, equal inputs equal files."""

import matplotlib
import pytest
import torch
from PIL import Image

from tests.report.models import KINDS, Files, pixels_for, tiny
from ttreg_interp.errors import ArtifactError, DataError
from ttreg_interp.interventions import Empty, TestTimeRegister, ZeroNeurons
from ttreg_interp.metrics.trace import Effect, Example, measure_effect
from ttreg_interp.report import before_after_figure, layer_curves_figure, record_run

REGISTER = TestTimeRegister({0: [3]})


def effect_of(kind: str = "[CLS]", intervention=REGISTER, n_examples: int = 2) -> Effect:
    model = tiny(kind)
    return measure_effect(model, [pixels_for(model)], intervention, n_examples=n_examples)


@pytest.fixture
def drawn(monkeypatch) -> list:
    """Every map that matplotlib draws while the test runs: its values and its colour limits."""
    from matplotlib.axes import Axes

    calls = []
    real = Axes.imshow

    def imshow(self, values, *args, **kwargs):
        image = real(self, values, *args, **kwargs)
        calls.append((torch.as_tensor(values), image.get_clim()))
        return image

    monkeypatch.setattr(Axes, "imshow", imshow)
    return calls


@pytest.mark.parametrize("kind", KINDS)
def test_maps_are_the_examples_with_one_scale_a_pair(tmp_path, drawn, kind):
    effect = effect_of(kind)
    files = before_after_figure(effect, tmp_path / "maps", layer=1)
    assert [file.name for file in files] == ["maps.png", "maps.svg"]
    expected = [
        getattr(example, f"{what}_{when}")[1]
        for example in effect.examples
        for what in ("norms", "attention")
        for when in ("before", "after")
    ]
    assert len(drawn) == len(expected)
    for (values, _), truth in zip(drawn, expected, strict=True):
        assert torch.equal(values, truth)
    for (before, limits), (after, same) in zip(drawn[::2], drawn[1::2], strict=True):
        both = torch.cat((before.flatten(), after.flatten()))
        assert limits == same == (float(both.min()), float(both.max()))


def test_wide_grids_make_lower_rows(tmp_path):
    sizes = {}
    for shape in ((4, 4), (4, 8)):
        maps = [torch.rand(2, *shape) for _ in range(4)]
        before_after_figure([Example("a", *maps)], tmp_path / str(shape[1]))
        with Image.open(tmp_path / f"{shape[1]}.png") as picture:
            sizes[shape[1]] = picture.size
    assert sizes[4][0] == sizes[8][0]
    assert sizes[4][1] > sizes[8][1]


def test_a_run_directory_is_drawn_with_its_images(tmp_path, drawn):
    model = tiny()
    arms = {"intact": Empty(), "register": REGISTER}
    folder = record_run(model, pixels_for(model), arms, tmp_path / "run")
    before_after_figure(folder, tmp_path / "maps")
    pictures = [values for values, _ in drawn if values.dtype == torch.uint8]
    assert len(pictures) == 3
    norms = [values for values, _ in drawn if values.dtype != torch.uint8][0]
    _, cache = model.run_with_cache(pixels_for(model))
    truth = cache.layout.grid(cache["resid_post", 2].norm(dim=-1))[0]
    torch.testing.assert_close(norms, truth)


def test_names_are_text_and_no_formula(tmp_path):
    model = tiny()
    name = "$x^{2 <b>&" + "é" * 30
    source = Files(pixels_for(model, 1), (name,))
    effect = measure_effect(model, source.batches(None, 1), REGISTER, n_examples=1)
    _, svg = before_after_figure(effect, tmp_path / "maps")
    assert "<b>&" not in svg.read_text(encoding="utf-8")


@pytest.mark.parametrize("figure", [before_after_figure, layer_curves_figure])
def test_equal_effects_make_equal_files(tmp_path, figure):
    one, two = (figure(effect_of(), tmp_path / name) for name in ("one", "two"))
    for first, second in zip(one, two, strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_figures_leave_matplotlib_as_it_was(tmp_path):
    before = dict(matplotlib.rcParams)
    layer_curves_figure(effect_of(), tmp_path / "curves")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("intervention", "drawn_register"), [(REGISTER, True), (ZeroNeurons({0: [3]}), False)]
)
def test_a_register_has_a_curve_only_where_there_is_one(tmp_path, intervention, drawn_register):
    from matplotlib.axes import Axes

    labels = []
    real = Axes.plot
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Axes, "plot", lambda *a, **k: (labels.append(k.get("label")), real(*a, **k))[1]
        )
        layer_curves_figure(effect_of(intervention=intervention), tmp_path / "curves")
    assert ("register, after" in labels) == drawn_register
    assert {"largest, before", "median, after", "one patch, after"} <= set(labels)


@pytest.mark.parametrize(
    ("source", "layer", "error", "words"),
    [
        (lambda: effect_of(n_examples=0), -1, DataError, "No examples to draw"),
        (effect_of, 3, DataError, "No layer 3: the maps have layers 0 to 2"),
        (effect_of, -4, DataError, "No layer -4"),
        (lambda: "no/such/run", -1, ArtifactError, "no readable run directory"),
    ],
)
def test_what_cannot_be_drawn_is_refused(tmp_path, source, layer, error, words):
    with pytest.raises(error, match=words):
        before_after_figure(source(), tmp_path / "maps", layer)


def test_one_arm_has_no_before_and_after(tmp_path):
    model = tiny()
    folder = record_run(model, pixels_for(model), {"intact": Empty()}, tmp_path / "run")
    with pytest.raises(DataError, match="has one arm"):
        before_after_figure(folder, tmp_path / "maps")
