"""The causal table: what it compares with what, and that it finds nothing where there is nothing."""

import pytest
import torch


@pytest.fixture(scope="module")
def planted():
    """A small planted ViT and its photographs."""
    from ttreg_interp.hooked import HookedViT
    from ttreg_interp.testbed import photograph_tensor, planted_vit

    vit = planted_vit(image_size=64, depth=6, width=96)
    return HookedViT.wrap(vit.module), vit.truth, photograph_tensor(64)[:10]


@pytest.fixture(scope="module")
def table(planted):
    """Three arms, one of which does nothing that matters."""
    from ttreg_interp.interventions import NeuronSet, TestTimeRegister, ZeroNeurons
    from ttreg_interp.metrics.causal import causal_table

    model, truth, pixels = planted
    idle = NeuronSet.of(truth).matched_random(7, model.cfg.d_mlp)
    arms = {
        "register": TestTimeRegister(truth),
        "zeroed": ZeroNeurons(truth),
        "idle": ZeroNeurons(idle),
    }
    return causal_table(model, pixels, truth, arms=arms, n_controls=3)


def test_zeroing_differs_from_random_neurons_and_idle_neurons_from_neither(table):
    zeroed = table["zeroed", "relative change", "random"]
    assert zeroed.difference.low > 0.3 and zeroed.q_value < 0.05
    idle = [test for test in table.tests if test.arm == "idle"]
    assert all(
        abs(test.difference.estimate) < 0.05 * max(1, abs(test.difference.estimate) * 25)
        for test in idle
    )
    assert table["idle", "relative change", "random"].difference.high < 0.05


def test_a_test_is_the_paired_difference_of_the_comparison(table):
    from ttreg_interp.metrics.intervals import paired_difference

    per_image = table.comparison.per_image
    metric = next(m.name for m in table.comparison.metrics if m.name.startswith("max/median"))
    expected = paired_difference(per_image["zeroed"][metric], per_image["intact"][metric], 0)
    assert table["zeroed", metric, "intact"].difference == expected
    draws = torch.stack(
        [per_image[f"random neurons moved to a register: draw {i}"][metric] for i in range(3)]
    )
    expected = paired_difference(per_image["register"][metric], draws.mean(dim=0), 0)
    assert table["register", metric, "random"].difference == expected


def test_p_values_are_adjusted_over_the_whole_table(table):
    from ttreg_interp.metrics.intervals import false_discovery

    adjusted = false_discovery([test.p_value for test in table.tests])
    assert [test.q_value for test in table.tests] == adjusted.tolist()
    assert all(test.q_value >= test.p_value for test in table.tests)
    assert {test for test in table.tests if test.q_value < 0.05} == set(table.differing())


def test_outputs_of_cka_belong_to_their_arm(planted, table):
    from ttreg_interp.interventions import TestTimeRegister
    from ttreg_interp.metrics.similarity import linear_cka

    model, truth, pixels = planted
    with torch.no_grad():
        intact = model(pixels)
        with model.intervened(TestTimeRegister(truth)):
            register = model(pixels)
    expected = linear_cka(intact.double(), register.double(), debiased=True)
    assert table.cka["register"].estimate == pytest.approx(expected, rel=1e-4)
    assert table.cka["intact"].estimate == pytest.approx(1)


def test_the_table_has_a_line_for_every_arm_and_survives_json(table):
    import json

    lines = str(table).splitlines()
    for arm in ("intact", "register", "zeroed", "idle", "random neurons zeroed"):
        assert any(line.startswith(f"| {arm} |") for line in lines)
    assert json.loads(json.dumps(table.to_dict()))["n_controls"] == 3


def test_mcnemar_counts_the_images_that_only_one_has_right():
    import ttreg_interp as tt
    from ttreg_interp.metrics.causal import causal_table

    model = tt.load("timm:test_vit?random")
    pixels = torch.randn(6, 3, 160, 160)
    with torch.no_grad():
        labels = model(pixels).argmax(dim=1)
    labels[:2] = (labels[:2] + 1) % model.cfg.d_vocab
    table = causal_table(model, pixels, {3: [7]}, labels=labels, n_controls=2)
    assert table.comparison["intact", "top-1"].value.estimate == pytest.approx(4 / 6)
    test = table.mcnemar["register"]
    right = table.comparison.per_image["register"]["top-1"]
    assert test.n == 6 and test.a_only - test.b_only == int(right.sum()) - 4
    assert table["zeroed", "KL", "random"].difference.n == 6


def test_a_table_names_what_it_does_not_have_and_refuses_names_of_controls(planted, table):
    from ttreg_interp.errors import DataError
    from ttreg_interp.interventions import ZeroNeurons
    from ttreg_interp.metrics.causal import ZEROED, causal_table

    with pytest.raises(DataError, match=r"Arms: \['register', 'zeroed', 'idle'\]"):
        _ = table["mean", "cosine", "random"]
    model, truth, pixels = planted
    with pytest.raises(DataError, match="the controls are; rename"):
        causal_table(model, pixels, truth, arms={ZEROED: ZeroNeurons(truth)})
    with pytest.raises(DataError, match="2 images are too few"):
        causal_table(model, pixels[:2], truth, arms={}, n_controls=2)


def test_mean_and_samples_come_from_the_images_to_fit_on(planted):
    from ttreg_interp.metrics.causal import causal_arms

    model, truth, pixels = planted
    arms = causal_arms(model, truth, [pixels[:4]], n_samples=10)
    samples = arms["resampled from other images"].samples.tensor
    assert samples.shape == (10, sum(map(len, truth.values())))
    assert list(causal_arms(model, truth)) == [n for n in arms if "other images" not in n]


def test_cka_of_rotated_features_is_one_and_of_independent_ones_none():
    from ttreg_interp.errors import DataError
    from ttreg_interp.metrics.cka_interval import cka_interval

    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(80, 6, generator=generator).double() for _ in range(2))
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator).double()).Q
    same = cka_interval(x, 3 * x @ rotation + 1)
    assert (same.low, same.high) == pytest.approx((1, 1))
    assert 0.0 in cka_interval(x, y)
    some = cka_interval(x, x + y)
    assert some.low < some.estimate < some.high <= 1 and some.method == "jackknife, 32 groups"
    with pytest.raises(DataError, match="needs 5 or more"):
        cka_interval(x[:4], y[:4])
