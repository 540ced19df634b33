"""find_register_neurons: exact on planted models, honest on others, nothing to be told."""

from dataclasses import replace

import pytest
import torch

from tests.discovery.models import FIRING, Push, direction, hooked, marked_vit, noise_images, read
from ttreg_interp.discovery import FindConfig, find_register_neurons
from ttreg_interp.errors import ContractError, DataError, LayoutError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.interventions import NeuronSet, TestTimeRegister

QUICK = FindConfig(evidence=False)
PUSH = Push(layer=2, neuron=7, places=(0, 5))


@pytest.mark.parametrize(
    ("layout", "seed", "detect", "amplify"),
    [
        ("timm", 0, {2: 3}, {3: 2, 4: 1}),
        ("timm", 1, {2: 1}, {}),
        ("timm", 2, {2: 2, 3: 1}, {4: 9, 5: 1, 6: 7}),
        ("open_clip", 3, {2: 4, 4: 3}, {}),
        ("open_clip", 4, {3: 5}, {5: 12, 6: 3}),
    ],
)
def test_planted_neurons_are_found_all_of_them_and_no_other(
    photographs_112, layout, seed, detect, amplify
):
    """The full grid of 60 models is analyses/discovery_grid.py."""
    from ttreg_interp.testbed.planted import planted_vit

    vit = planted_vit(
        layout=layout, seed=seed, depth=8, image_size=112, detect=detect, amplify=amplify
    )
    found = find_register_neurons(HookedViT.wrap(vit.module), photographs_112, QUICK)
    assert found.by_layer() == vit.truth
    assert found.emerges_at == vit.emerges_at
    assert found.caveats == ()


@pytest.mark.parametrize("layout", ["timm", "open_clip"])
def test_a_clean_model_gives_an_empty_list_that_says_so(photographs_112, layout):
    from ttreg_interp.testbed.planted import clean_vit

    model = HookedViT.wrap(clean_vit(layout=layout, depth=8, image_size=112).module)
    found = find_register_neurons(model, photographs_112)
    assert len(found) == 0
    assert "No outliers: in 12 images no token stands out" in str(found)
    assert "x the median" in found.caveats[0]


def test_a_model_with_trained_registers_gives_an_empty_list():
    """What trained registers are for: large norms sit in them, and they are no candidates."""
    vit = marked_vit(reg_tokens=4)
    with torch.no_grad():
        vit.reg_token[..., 14] = 300
    found = find_register_neurons(hooked(vit), noise_images())
    assert len(found) == 0
    assert found.evidence["outliers"]["priors"]["cls_outliers"] == 0


def test_the_last_layers_are_not_searched_if_they_write_nothing_of_the_outliers():
    found = find_register_neurons(hooked(marked_vit(PUSH, depth=6)), noise_images(), QUICK)
    assert found.evidence["searched_layers"] == [2, 2]
    assert found.detect_layer == 2


def test_layers_named_by_the_caller_are_searched():
    model, images = hooked(marked_vit(PUSH, depth=6)), noise_images()
    config = replace(QUICK, first_layer=0, last_layer=-2, top_k=3)
    found = find_register_neurons(model, images, config)
    assert found.evidence["searched_layers"] == [0, 4]
    assert len(found) == 3
    with pytest.raises(DataError, match="begin at layer 4 and end at layer 1"):
        find_register_neurons(model, images, replace(QUICK, first_layer=4, last_layer=1))
    with pytest.raises(LayoutError, match="last_layer=6.*layers 0 to 5"):
        find_register_neurons(model, images, replace(QUICK, last_layer=6))


@pytest.mark.parametrize("semantics", ["auto", "paper", "reference"])
def test_every_preset_finds_a_planted_neuron(semantics):
    threshold = 50.0 if semantics == "reference" else None
    config = replace(QUICK, semantics=semantics, threshold_value=threshold, top_k=1)
    found = find_register_neurons(hooked(marked_vit(PUSH)), noise_images(), config)
    assert found.by_layer() == {2: (7,)}
    assert semantics in found.provenance["selection"]


def test_the_greedy_curve_ends_at_the_fewest_neurons_that_suppress():
    """Three pushes on their own patches: each must be moved before all outliers are gone."""
    pushes = [Push(1 + i, 7 + i, (5 * i, 5 * i + 1), mark=i, along=i) for i in range(3)]
    config = replace(QUICK, score="abs", top_k=None, last_layer=3)
    found = find_register_neurons(hooked(marked_vit(*pushes, depth=5)), noise_images(), config)
    assert found.by_layer() == {1: (7,), 2: (8,), 3: (9,)}
    left = {point["k"]: point["outliers_left"] for point in found.evidence["curve"]}
    assert left[3] == 0
    assert left[2] == pytest.approx(1 / 3)
    assert found.evidence["outcome"]["outliers_left"] == 0
    half = find_register_neurons(
        hooked(marked_vit(*pushes, depth=5)), noise_images(), replace(config, suppress_to=0.4)
    )
    assert len(half) == 2


def test_outliers_that_no_neuron_makes_are_left_and_said_so():
    """A patch whose position embedding is itself an outlier: arXiv 2506.08010 names this limit."""
    vit = marked_vit()
    with torch.no_grad():
        vit.pos_embed[0, [3, 9]] += 300 * direction(0)
    found = find_register_neurons(hooked(vit), noise_images(), QUICK)
    assert "leave 100% of the outliers (wanted: 5%)" in found.caveats[0]


def test_the_guard_takes_fewer_neurons_than_would_suppress_and_says_so():
    """The second neuron is needed, but the output hangs on it."""
    vit = marked_vit(Push(1, 7, (0, 5)), Push(2, 8, (9, 12), mark=1, along=1, size=150))
    with torch.no_grad():  # [CLS] fires it too, and what it writes there is the output
        vit.cls_token[..., 1] = 6
    found = find_register_neurons(hooked(vit), noise_images(), QUICK)
    assert found.by_layer() == {1: (7,)}
    assert "more than the guard of 0.2; 1 are taken" in found.caveats[0]
    bold = find_register_neurons(hooked(vit), noise_images(), replace(QUICK, guard=1.9))
    assert bold.by_layer() == {1: (7,), 2: (8,)}


def test_few_images_calibrate_on_what_they_have_and_say_so():
    found = find_register_neurons(hooked(marked_vit(PUSH)), noise_images(3), QUICK)
    assert found.by_layer() == {2: (7,)}
    assert "No held-out image has outliers" in found.caveats[0]


@torch.no_grad()
def _hidden_behind_the_first() -> torch.nn.Module:
    """A neuron that makes outliers of its own once the first kind is gone: it reads what the
    first neuron's absence leaves."""
    vit = marked_vit(PUSH)
    mlp = vit.blocks[3].mlp
    read(mlp, 50, mark=0, bias=-1.0)  # LayerNorm hides the mark while the push is there
    mlp.fc2.weight[:, 50] = 300 / FIRING * direction(2)
    return vit


def test_a_second_search_finds_what_grows_once_the_first_neurons_are_moved():
    model, images = hooked(_hidden_behind_the_first()), noise_images()
    once = find_register_neurons(model, images, replace(QUICK, top_k=1))
    assert once.by_layer() == {2: (7,)}
    twice = find_register_neurons(model, images, replace(QUICK, top_k=1, recursions=2))
    assert twice.by_layer() == {2: (7,), 3: (50,)}
    steps = twice.evidence["recursions"]
    assert [step["images_with_outliers"] for step in steps] == [12, 0]  # 4 are held out
    assert [row[:2] for row in twice.ranking[:2]] == [(2, 7), (3, 50)]


def test_evidence_reaches_neurons_that_a_further_search_finds_in_an_earlier_layer():
    """Short outliers, which stand out once the long ones are gone."""
    short = Push(layer=1, neuron=30, places=(10,), mark=1, along=1, size=60)
    long = replace(PUSH, size=2000)
    model, images = hooked(marked_vit(short, long)), noise_images()
    found = find_register_neurons(model, images, FindConfig(top_k=1, recursions=1))
    assert found.by_layer() == {1: (30,), 2: (7,)}
    assert found.evidence["searched_layers"] == [2, 2]
    assert [(row["layer"], row["neuron"]) for row in found.evidence["single"]] == [(2, 7), (1, 30)]


def test_the_artefact_keeps_the_threshold_of_the_intact_model_and_tells_the_others():
    model, images = hooked(_hidden_behind_the_first()), noise_images()
    once = find_register_neurons(model, images, replace(QUICK, top_k=1))
    twice = find_register_neurons(model, images, replace(QUICK, top_k=1, recursions=1))
    assert (twice.threshold, twice.detect_layer) == (once.threshold, 2)
    assert twice.evidence["recursions"][0]["detect_layer"] == 3


def test_the_artefact_tells_how_it_was_made():
    images = noise_images()
    model = hooked(marked_vit(PUSH))
    found = find_register_neurons(model, images, QUICK)
    assert found.provenance["images_digest"] is not None
    assert found.provenance["n_images"] == 12  # a quarter is held out
    assert found.provenance["config"]["score"] == "projection"
    assert {"torch", "python"} <= found.provenance["versions"].keys()
    assert found.image_size == (64, 64)
    assert found.architecture == {"layers": 4, "mlp_hidden": 256, "d_model": 64}
    assert found.check_model(model) is found


def test_the_model_is_left_as_it_was():
    model, images = hooked(marked_vit(PUSH)), noise_images()
    before = model(images)
    find_register_neurons(model, images, replace(QUICK, recursions=1))
    assert torch.equal(model(images), before)
    assert not any(point.has_hooks() for point in model.hook_dict.values())
    assert not any(block.mlp._forward_pre_hooks for block in model.blocks)


def test_the_same_search_twice_gives_the_same_artefact():
    model, images = hooked(marked_vit(PUSH)), noise_images()
    assert find_register_neurons(model, images) == find_register_neurons(model, images)


def test_interventions_accept_the_artefact():
    model, images = hooked(marked_vit(PUSH)), noise_images()
    found = find_register_neurons(model, images, QUICK)
    assert NeuronSet.of(found) == found.neurons
    with model.intervened(TestTimeRegister(found)):
        _, cache = model.run_with_cache(images)
    patches = cache["resid_post", 3][:, cache.layout.patches]
    assert patches.norm(dim=-1).max() < found.threshold


def test_half_precision_finds_the_same():
    model = hooked(marked_vit(PUSH).bfloat16())
    found = find_register_neurons(model, noise_images(), QUICK)
    assert found.by_layer() == {2: (7,)}
    assert found.provenance["dtype"] == "bfloat16"


def test_images_need_not_be_square():
    vit = marked_vit(Push(2, 7, (0, 11)), size=(32, 96))
    found = find_register_neurons(hooked(vit), noise_images(size=(32, 96)))
    assert found.by_layer() == {2: (7,)}
    assert found.image_size == (32, 96)
    assert found.evidence["outliers"]["priors"]["outliers_per_image"] == 2


def test_nan_in_a_layer_of_the_scoring_pass_is_named():
    """The survey saw nothing wrong: the bad image comes later."""
    images = noise_images(24)
    images[20, 0, 0, 0] = float("nan")
    with pytest.raises(ContractError, match="NaN or inf in .* at blocks.0.hook_resid_mid"):
        find_register_neurons(hooked(marked_vit(PUSH)), images, replace(QUICK, survey_images=8))


@pytest.mark.assets
@pytest.mark.parametrize(("size", "n_images"), [(224, 16), (384, 16)])
def test_the_real_vit_tiny(assets, size, n_images):
    """One neuron of block 7 makes the four corner outliers; two of block 6 start them."""
    from ttreg_interp.data.images import images
    from ttreg_interp.hooked import load

    checkpoint = assets / "vit_tiny_augreg_in1k" / "model.safetensors"
    model = load(f"timm:vit_tiny_patch16_224@{checkpoint}", image_size=size)
    folder = images(assets / "imagenet_sample", limit=n_images, seed=0)
    found = find_register_neurons(model, folder, replace(QUICK, batch_size=4))
    assert found.ranking[0][:2] == (7, 417)
    assert set(found) <= {(7, 417), (6, 189), (6, 59)}
    share = found.ranking[0][2] / found.evidence["excess"]
    assert share > 0.9
    assert found.emerges_at == 7
    assert found.evidence["curve"][0]["outliers_left"] == 0
    assert found.evidence["outliers"]["priors"]["kind"] == "fixed positions"
