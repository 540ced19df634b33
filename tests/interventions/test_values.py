"""Interventions as values: equal, printable, and honest in JSON."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttreg_interp.errors import ArtifactError, InterventionError
from ttreg_interp.interventions import (
    AttentionBias,
    Empty,
    Intervention,
    MaskTokens,
    NeuronSet,
    Part,
    Selector,
    Sequence,
    TensorValue,
    TestTimeRegister,
    ZeroNeurons,
)

from .kinds import EXAMPLES
from .laws import as_users_run, few
from .models import D_MODEL, N_HEADS, N_LAYERS, images, model

LAYOUT = "timm with [CLS]"
D_HEAD = D_MODEL // N_HEADS


@few
@given(
    st.sampled_from(["float32", "float64", "bfloat16", "float16", "int64", "bool"]),
    st.lists(st.integers(0, 5), max_size=3),
    st.integers(0, 99),
)
def test_stored_tensors_come_back_bit_for_bit(dtype, shape, seed):
    """Small ones as numbers, large ones as safetensors."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3
    value = TensorValue(noise.to(getattr(torch, dtype)))
    hook = "blocks.0.hook_resid_post"
    patch = EXAMPLES["a patched residual"](LAYOUT).__class__(hook, value)
    again = Intervention.from_json(patch.to_json())
    assert again == patch
    assert again.values.tensor.dtype == value.tensor.dtype  # type: ignore[attr-defined]
    assert again.values.tensor.shape == value.tensor.shape  # type: ignore[attr-defined]


def test_small_tensors_can_be_read_in_the_file_and_large_ones_are_safetensors():
    small, large = TensorValue(torch.tensor([1.5, -2])), TensorValue(torch.zeros(100))
    assert small.to_dict() == {"tensor": [1.5, -2.0], "dtype": "float32"}
    assert list(large.to_dict()) == ["safetensors"]


def test_values_with_other_tensors_are_not_equal():
    k, v = torch.zeros(2, N_LAYERS, N_HEADS, D_HEAD)
    one, same = AttentionBias(k, v), AttentionBias(k.clone(), v.clone())
    other, double = AttentionBias(k + 1, v), AttentionBias(k.double(), v.double())
    assert one == same
    assert len({one, same, other, double}) == 3
    assert one != "a bias"


def test_every_kind_says_what_it_does_in_words():
    descriptions = {repr(EXAMPLES[name](LAYOUT)) for name in EXAMPLES}
    assert len(descriptions) == len(EXAMPLES)
    assert all(text.startswith("<") and "tensor(" not in text for text in descriptions)
    assert max(map(len, descriptions)) < 200


def test_a_composition_reads_in_order():
    both = TestTimeRegister({1: [7]}) + ZeroNeurons({0: [3]})
    assert both.describe() == (
        "1 neuron; layer 1: 7 moved to 1 register (paper), then zero in 1 neuron; layer 0: 3"
    )


def test_a_composition_of_compositions_is_one():
    a, b, c = ZeroNeurons({0: [3]}), ZeroNeurons({0: [4]}), ZeroNeurons({1: [3]})
    assert Sequence((a, Sequence((b, c)))) == Sequence((a, b, c, Empty())) == a + b + c


def test_what_json_holds_is_plain_and_named():
    body = json.loads((ZeroNeurons({1: [7]}, tokens="patches") + Empty()).to_json())
    assert body == {
        "schema": "intervention/1",
        "kind": "ZeroNeurons",
        "neurons": {"1": [7]},
        "tokens": {"kind": "Part", "name": "patches"},
    }


def test_save_and_load(tmp_path):
    value = EXAMPLES["an attention bias"](LAYOUT) + EXAMPLES["a test-time register"](LAYOUT)
    value.save(tmp_path / "clean.json")
    assert Intervention.load(tmp_path / "clean.json") == value
    assert [file.name for file in tmp_path.iterdir()] == ["clean.json"]
    with pytest.raises(ArtifactError, match="Cannot read .*missing.json: No such file"):
        Intervention.load(tmp_path / "missing.json")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "clean.json"
    Empty().save(path)
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        ZeroNeurons({1: [7]}).save(path)
    assert Intervention.load(path) == Empty()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "This is not JSON"),
        ("[]", "found 'list'"),
        ('{"kind": "Empty"}', "schema 'intervention/1', found None"),
        (
            '{"schema": "intervention/1", "kind": "Emty"}',
            "Unknown kind of intervention 'Emty'; known",
        ),
        (
            '{"schema": "intervention/1", "kind": "Part", "name": "cls"}',
            "kind of intervention 'Part'",
        ),
        (
            '{"schema": "intervention/1", "kind": "ZeroNeurons", "neuron": {}}',
            r"ZeroNeurons: .*neuron.*Its fields are \['neurons', 'tokens'\]",
        ),
        (
            '{"schema": "intervention/1", "kind": "MeanNeurons", "neurons": {"1": [7]}, '
            '"means": {"safetensors": "AAAA"}}',
            "stored tensor cannot be read.*damaged",
        ),
    ],
)
def test_damaged_files_are_refused(text, message):
    with pytest.raises(ArtifactError, match=message):
        Intervention.from_json(text)


def test_selectors_are_saved_as_well():
    selector = Part("patches") & ~Part("cls")
    assert Selector.from_json(selector.to_json()) == selector


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_stored_tensors_are_finite(bad):
    with pytest.raises(InterventionError, match="1 NaN or inf; store finite values"):
        TensorValue(torch.tensor([1.0, bad]))


def test_gradients_reach_stored_tensors():
    """k' and v' can be fitted."""
    k, v = (torch.randn(N_LAYERS, N_HEADS, D_HEAD, requires_grad=True) for _ in "kv")
    hooked = model(LAYOUT)
    with hooked.intervened(AttentionBias(k, v)):
        hooked(images(2)).square().sum().backward()
    assert k.grad is not None
    assert v.grad is not None
    assert (k.grad.abs().amax(dim=2) > 0).all()
    assert (v.grad.abs().amax(dim=2) > 0).all()


def test_neuron_sets_are_sets_by_layer():
    a, b = NeuronSet.of({1: [7, 3, 7]}), NeuronSet.of([(1, 7), (0, 2)])
    assert a.layers == ((1, (3, 7)),)
    assert list(a | b) == [(0, 2), (1, 3), (1, 7)]
    assert list(a & b) == [(1, 7)]
    assert NeuronSet.of(a.to_dict()) == a
    assert (a | b).columns(1) == slice(1, 3)


@few
@given(st.integers(0, 999))
def test_matched_random_neurons_are_as_many_others_in_every_layer(seed):
    neurons = NeuronSet.of({0: [3, 50], 1: [7, 20, 90]})
    drawn = neurons.matched_random(seed, 128)
    assert {layer: len(ns) for layer, ns in drawn.layers} == {0: 2, 1: 3}
    assert not len(drawn & neurons)
    assert drawn == neurons.matched_random(seed, 128)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NeuronSet.of({1: [-1]}), "Indices count from 0"),
        (lambda: NeuronSet.of({1: [1.5]}), "mapping {layer:"),
        (lambda: NeuronSet.of([1, 2]), "pairs"),
        (lambda: NeuronSet.of({1: [0, 1, 2]}).matched_random(0, 5), "too few for a matched random"),
        (lambda: Sequence(("a",)), "Part 0 of a Sequence is 'a'; only interventions compose"),
        (lambda: MaskTokens(None), "None selects no tokens"),
    ],
)
def test_what_is_no_value_is_refused(make, message):
    with as_users_run(), pytest.raises(InterventionError, match=message):
        make()


def test_only_interventions_are_added():
    with pytest.raises(TypeError):
        Empty() + 1
