"""A configuration says what is wrong with it before anything is built."""

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttreg_interp.errors import LayoutError, UnsupportedModelError
from ttreg_interp.testbed import Circuit, PlantedConfig


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"layout": "torch"}, UnsupportedModelError, "layout='torch' .* timm, open_clip"),
        ({"size": "huge"}, UnsupportedModelError, "size='huge' .* tiny, small, base"),
        ({"image_size": 100}, LayoutError, "100 px in patches of 16 px: .* whole number"),
        ({"image_size": 48}, LayoutError, "48 px in patches of 16 px: .* at least 16"),
        ({"width": 40, "heads": 2}, UnsupportedModelError, "40 is too narrow: .* reserves 23"),
        ({"width": 100}, UnsupportedModelError, "3 heads do not divide a width of 100"),
        ({"width": 192, "heads": 192}, UnsupportedModelError, "at least 2 dimensions"),
        (
            {"patch_size": 4, "image_size": 64, "circuit": Circuit(filters=16)},
            UnsupportedModelError,
            "filters=16: a patch of 4 px has 15",
        ),
        ({"detect": {}}, UnsupportedModelError, r"plants nothing. For that, use clean_vit\(\)"),
        ({"detect": {1: 3}}, UnsupportedModelError, "layers 1 to 4 of 12 blocks: allowed are 2"),
        ({"amplify": {11: 1}}, UnsupportedModelError, "layers 2 to 11 of 12 .* 2 to 10"),
        ({"depth": 5}, UnsupportedModelError, "layers 2 to 4 of 5 blocks: allowed are 2 to 3"),
        ({"detect": {2: 1, 3: 1}}, UnsupportedModelError, "Layer 3 amplifies and layer 3 detects"),
        ({"detect": {2: 97}}, UnsupportedModelError, "97 .* layer 2: allowed are 1 to 96"),
        ({"amplify": {4: 0}}, UnsupportedModelError, "0 register neurons in layer 4"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_with_what_is_allowed(fields, error, message):
    with pytest.raises(error, match=message):
        PlantedConfig(**fields)


def test_mappings_are_stored_hashably_and_in_order():
    config = PlantedConfig(detect={3: 1, 2: 4}, amplify={5: 2})
    assert config.detect == ((2, 4), (3, 1))
    assert config == PlantedConfig(detect=((2, 4), (3, 1)), amplify=((5, 2),))
    assert hash(config) == hash(replace(config, seed=0))
    assert config.layers == {2: 4, 3: 1, 5: 2}


def test_a_configuration_survives_json():
    config = PlantedConfig(size="small", detect={2: 1}, circuit=Circuit(filters=8))
    fields = json.loads(json.dumps(asdict(config)))
    circuit = Circuit(**fields.pop("circuit"))
    colour = {name: tuple(fields.pop(name)) for name in ("mean", "std")}
    pairs = {name: tuple(map(tuple, fields.pop(name))) for name in ("detect", "amplify")}
    assert PlantedConfig(**fields, **colour, **pairs, circuit=circuit) == config


@given(
    first=st.integers(2, 4),
    detecting=st.integers(1, 3),
    amplifying=st.integers(0, 3),
)
def test_outliers_emerge_where_the_first_amplifies_or_the_last_detects(
    first, detecting, amplifying
):
    turn = first + detecting
    detect = dict.fromkeys(range(first, turn), 1)
    amplify = dict.fromkeys(range(turn, turn + amplifying), 2)
    config = PlantedConfig(detect=detect, amplify=amplify)
    assert config.emerges_at == (turn if amplify else turn - 1)


def test_explicit_sizes_take_the_place_of_named_ones():
    shape = PlantedConfig(size="base", width=96, image_size=64, patch_size=8, heads=4).shape
    assert (shape.width, shape.depth, shape.heads, shape.patches) == (96, 12, 4, 64)
