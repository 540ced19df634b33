"""Evidence beside the list: each kind is right on models where the answer is known."""

import json
from dataclasses import replace

import pytest
import torch

from tests.discovery.models import Push, direction, hooked, marked_vit, noise_images
from ttreg_interp.discovery import FindConfig, find_register_neurons
from ttreg_interp.discovery.agreement import lists_for
from ttreg_interp.discovery.evidence import stability
from ttreg_interp.discovery.scores import STATISTICS, NeuronScores
from ttreg_interp.discovery.weights import leading_direction, weight_check
from ttreg_interp.interventions import NeuronSet

PUSHES = (Push(1, 3, (0, 5)), Push(2, 7, (9, 12), mark=1, along=1, size=150))


@pytest.fixture(scope="module")
def model():
    return hooked(marked_vit(*PUSHES))


@pytest.fixture(scope="module")
def found(model):
    return find_register_neurons(model, noise_images(24), FindConfig(batch_size=6))


def test_on_held_out_images_the_register_takes_the_outliers_and_the_controls_do_not(found):
    held = found.evidence["held_out"]
    arms = held["arms"]
    assert held["n_images"] == 6
    left = {name: arm["outliers_left"] for name, arm in arms.items()}
    assert left["intact"] == left["token only"] == 1
    assert left["register"] == left["zeroed"] == 0
    assert left["random neurons"]["low"] == left["random neurons"]["high"] == 1
    assert left["values in random neurons"]["high"] == 0
    assert arms["intact"]["outliers_per_image"]["estimate"] == 4
    assert arms["register"]["outliers_per_image"]["n"] == 6


def test_each_neuron_alone_and_left_out_has_its_own_part(found):
    rows = {(row["layer"], row["neuron"]): row for row in found.evidence["single"]}
    assert rows.keys() == {(1, 3), (2, 7)}
    for row in rows.values():
        assert row["left_by_it_alone"] == pytest.approx(0.5)
        assert row["left_without_it"] == pytest.approx(0.5)
        assert 0.2 < row["shrinkage"]["low"] < row["shrinkage"]["high"] < 0.8


def test_neurons_that_clearly_lead_stay_under_every_resample(found):
    for row in found.evidence["stability"]:
        assert row["stays"] == 1
    scores = [row[2] for row in found.ranking[:2]]
    for score, row in zip(scores, found.evidence["stability"], strict=True):
        assert row["score_low"] < score < row["score_high"]


def test_a_neuron_that_leads_by_one_image_is_not_stable():
    """Two candidates, of which the second leads in one image of ten, by far."""
    statistics = {name: torch.ones(10, 2, dtype=torch.float64) for name in STATISTICS}
    statistics["abs"][:, 1] = 0.9
    statistics["abs"][0, 1] = 2.1
    scores = NeuronScores({}, range(2), torch.ones(2, 1).double(), torch.ones(3).double(), 1.0, 10)
    first = stability(statistics, scores, [(0, 0), (1, 0)], "abs", k=1, reach=1, seed=0)[0]
    assert 0.2 < first["stays"] < 0.5  # the image is missing from a resample with chance 0.35
    second = stability(statistics, scores, [(0, 0), (1, 0)], "abs", k=1, reach=2, seed=0)[0]
    assert second["stays"] == 1


def test_output_rows_point_along_the_outliers_and_random_rows_do_not(found):
    for layer in found.evidence["weights"]["layers"]:
        assert abs(layer["cosine"][0]) > 0.6  # two kinds share one mean direction
        assert layer["random_cosine"] < 0.1


def test_the_leading_direction_of_a_block_is_that_of_its_strongest_neuron():
    vit = marked_vit()
    with torch.no_grad():  # a neuron that is on for every input, linear and strong
        mlp = vit.blocks[1].mlp
        mlp.fc1.weight[4] = direction(1)
        mlp.fc1.bias[4] = 10
        mlp.fc2.weight[:, 4] = 500 * direction(0)
    block = hooked(vit).blocks[1]
    leading = leading_direction(block, torch.Generator().manual_seed(0))
    assert float(leading @ direction(0)) ** 2 > 0.98
    check = weight_check(hooked(vit), NeuronSet.of({1: [4]}), direction(0).double(), seed=0)
    assert check["layers"][0]["leading_cosine"] > 0.99
    assert check["layers"][0]["cosine_with_leading"][0] > 0.99


def test_the_artefact_sums_its_evidence_up_in_words(found):
    text = str(found)
    assert "held-out images, neurons moved to a register: 0.0% of the outliers left" in text
    assert "controls: random neurons leave 100.0% of the outliers" in text
    assert "moved alone, they shrink the outliers by 52.5%, 37.1%" in text
    assert "resampled images: every neuron stays among the best in 100%" in text


def test_evidence_is_json_and_may_be_left_out(model, found):
    json.dumps(found.evidence)
    without = find_register_neurons(
        model, noise_images(24), FindConfig(batch_size=6, evidence=False)
    )
    assert without.neurons == found.neurons
    assert {"held_out", "single", "stability", "weights"} <= found.evidence.keys()
    assert not {"held_out", "single", "stability", "weights"} & without.evidence.keys()


def test_a_layer_too_full_for_random_controls_is_skipped_with_the_reason():
    vit = marked_vit(Push(2, 0, (0, 5)), mlp_ratio=0.125)  # 8 neurons a layer
    config = FindConfig(score="abs", top_k=5, first_layer=2, last_layer=2)
    found = find_register_neurons(hooked(vit), noise_images(), config)
    assert "too few" in found.evidence["held_out"]["arms"]["random neurons"]["skipped"]


@pytest.mark.parametrize(
    ("spec", "lists"),
    [
        ("dinov2:dinov2_vitl14", {"dinov2_vitl14_hub", "dinov2_vitl14_paper_named"}),
        ("hf:facebook/dinov2-large", {"dinov2_vitl14_hub"}),
        ("timm:vit_small_patch14_dinov2.lvd142m", {"dinov2_vits14_jroth"}),
        ("open_clip:ViT-B-16/laion2b_s34b_b88k", {"openclip_vitb16_paper_named"}),
        ("open_clip:ViT-B-16/openai", {"openai_clip_vitb16_jroth"}),
    ],
)
def test_published_lists_are_found_by_the_model_s_spec(model, spec, lists):
    named = _named(model, spec)
    assert lists <= lists_for(named).keys()
    family = {name.split("_jroth")[0].split("_bansal")[0] for name in lists}
    assert all(any(name[:8] == word[:8] for word in family) for name in lists_for(named))


@pytest.mark.parametrize(
    "spec",
    [
        "timm:vit_tiny_patch16_224",
        "dinov2:dinov2_vitl14_reg",
        "timm:vit_large_patch14_reg4_dinov2.lvd142m",
        "hf:facebook/dinov2-with-registers-large",
        "timm:vit_large_patch14_dinov2.lvd142m?random",
    ],
)
def test_models_without_a_published_list_get_none(model, spec):
    assert lists_for(_named(model, spec)) == {}


def _named(model, spec):
    from types import SimpleNamespace

    return SimpleNamespace(cfg=replace(model.cfg, model_name=spec))
