"""Analyses of norms, neurons and moves: on the planted ViT each says what was planted."""

import pytest


@pytest.fixture(scope="module")
def planted():
    """What was planted."""
    from ttreg_interp.testbed import planted_vit

    return planted_vit(image_size=112)


def test_outliers_emerge_in_the_mlp_where_they_were_planted(found, planted):
    numbers = found("fig02_emergence").numbers
    assert numbers["largest_step"] == f"MLP of block {planted.emerges_at}"
    assert numbers["images_with_that_step"].estimate == 1
    assert numbers["attention_behind"].low > 3 * numbers["attention_before"].high


def test_only_planted_neurons_write_the_outliers(found, planted):
    numbers = found("fig03_sparsity").numbers
    assert tuple(numbers["neurons"]) == planted.truth[planted.emerges_at]
    assert numbers["activation_at_outliers"].low > 100 * numbers["activation_elsewhere"].high


def test_planted_neurons_fire_where_the_outliers_are_and_random_ones_do_not(found):
    numbers = found("fig04_maps").numbers
    assert len(numbers["neurons"]) == 6
    assert all(value.low > 0.8 for value in numbers["neurons"].values())
    assert numbers["random"].high < 0.4


def test_planted_neurons_write_one_direction_and_random_ones_many(found):
    for numbers in found("fig21_updates").numbers.values():
        assert numbers["cosine"].low > 0.999
        assert numbers["norm"].low > 10 * numbers["random_norm"].high


def test_planted_rows_write_the_two_dimensions_of_the_outlier_direction(found, planted):
    for layer, numbers in found("fig25_decoder").numbers.items():
        assert numbers["top2_share"].min() > 0.99
        dims = planted.direction.abs().topk(2).indices.sort().values
        assert (numbers["dimensions"] == dims).all(), layer
        assert numbers["cosine_to_outliers"].min() > 0.9 > numbers["cosine_of_others"].high


def test_outliers_go_where_their_activations_are_put_and_controls_move_nothing(found):
    numbers = found("fig04_shift", n_shown=1).numbers
    for arm in ("to a random patch", "to a heart"):
        assert numbers[arm]["largest_norm_in_target"].estimate == 1
        assert numbers[arm]["target_that_is_outlier"].estimate == 1
        assert numbers[arm]["outliers_elsewhere"].estimate == 0
    assert numbers["to a register"]["outliers_elsewhere"].estimate == 0
    before = numbers["intact"]["outliers_elsewhere"].estimate
    for arm in ("control: random neurons", "control: random neurons, register values"):
        assert numbers[arm]["largest_norm_in_target"].high < 0.3
        assert numbers[arm]["outliers_elsewhere"].estimate > 0.9 * before > 0


def test_a_register_takes_the_spike_out_of_the_attention_map_whatever_its_start(found):
    numbers = found("fig05_maps", n_shown=1, views=False).numbers
    assert numbers["intact"]["largest_attention"].low > 0.1
    for name, arm in numbers.items():
        if name != "intact":
            assert arm["largest_attention"].high < 0.01
            assert arm["correlation_with_1_register"].low > 0.9


def test_the_register_draws_what_the_outliers_drew_and_an_empty_token_nothing(found):
    last = {name: values[-1] for name, values in found("reb_attention").numbers.items()}
    assert last["register"].low > 0.9 and last["outliers, before"].low > 0.9
    assert last["token to which nothing is moved"].high < 0.05


def test_only_the_outliers_own_mlp_and_planted_neurons_bring_them_back(found, planted):
    numbers = found("patching", n_images=2, n_random=1, beside=()).numbers
    best = numbers["best"]
    assert best["mlp_out"] == [planted.emerges_at, numbers["kinds_of_tokens"].index("outliers")]
    assert all(abs(cell["back"].estimate) < 0.05 for cell in numbers["heads"])
    elsewhere = [cell for cell in numbers["mlp_out"] if cell["place"] != 0]
    assert all(abs(cell["back"].estimate) < 0.05 for cell in elsewhere)
    back = {(cell["layer"], cell["place"]): cell["back"] for cell in numbers["neurons"]}
    amplifiers = [pair for pair in back if pair[0] > 2 and pair[1] in planted.truth[pair[0]]]
    random = [pair for pair in back if pair[1] not in planted.truth[pair[0]]]
    assert min(back[pair].low for pair in amplifiers) > 0.15
    assert max(abs(back[pair].estimate) for pair in random) < 0.05


def test_outliers_vanish_with_the_planted_neurons_and_not_before_their_layer(found, planted):
    numbers = found(
        "sweep_neurons", counts=(1, 6), around=(-2, 2), detect_layers=(11,), n_images=6
    ).numbers
    assert numbers["register_neurons_among_best"] == 6
    top = max(planted.truth)
    cells = {
        (c["top_layer"], c["top_k"]): c["outliers_left"].estimate for c in numbers["grid"].values()
    }
    last = max(layer for layer, _ in cells)
    assert last >= top and cells[last, 6] < 0.05 < cells[last, 1]
    first = min(layer for layer, _ in cells)
    assert first < min(planted.truth) and cells[first, 6] > 0.9


def test_neurons_of_one_resolution_clean_the_others(found):
    numbers = found("sweep_resolution", scales=(1.0, 2.0), n_images=6).numbers
    assert list(numbers) == ["112 x 112", "224 x 224"]
    for size in numbers.values():
        assert size["images_with_outliers"] == 6 and size["register"].estimate == 0
        assert size["random neurons moved"].estimate == size["intact"].estimate
