"""Planted register neurons make real outliers on real photographs, and only they do."""

import pytest
import torch
from planted_runs import (
    attention,
    count,
    highest,
    margin,
    matched_random,
    register_keys_values,
    relative_change,
    run,
    run_with_bias,
    scores,
)
from torch.nn.functional import avg_pool2d, cosine_similarity

from ttreg_interp.testbed import PlantedConfig, clean_vit, photograph_tensor, planted_vit

LAYOUTS = ("timm", "open_clip")
PLANS = {
    "one neuron": ({2: 1}, {}),
    "one and an amplifier": ({4: 1}, {5: 1}),
    "default": ({2: 3}, {3: 2, 4: 1}),
    "one layer of five": ({4: 5}, {}),
    "ten like OpenCLIP": ({3: 5, 4: 2}, {5: 2, 6: 1}),
    "one in each of six layers": (dict.fromkeys(range(2, 8), 1), {}),
    "twenty in six layers": ({2: 4, 3: 4, 4: 3}, {5: 3, 6: 3, 7: 3}),
}


@pytest.fixture(scope="module")
def photographs():
    """Sixteen at each size."""
    pytest.importorskip("skimage")
    pytest.importorskip("sklearn")
    return {size: photograph_tensor(size) for size in (96, 224)}


@pytest.fixture(scope="module")
def eight(photographs):
    return photographs[224][::2]


@pytest.fixture(scope="module", params=LAYOUTS)
def vit(request):
    return planted_vit(layout=request.param)


@pytest.fixture(scope="module")
def intact(vit, eight):
    return run(vit, eight)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_algorithm_1_finds_exactly_the_planted_neurons_and_they_alone_matter(
    plan, layout, seed, photographs
):
    detect, amplify = plan
    pixels = photographs[96][::3]
    vit = planted_vit(layout=layout, image_size=96, seed=seed, detect=detect, amplify=amplify)
    intact = run(vit, pixels)
    score = scores(intact, max(vit.truth))

    assert highest(score, count(vit.truth)) == vit.truth
    assert margin(score, vit.truth) >= 2
    assert intact.outliers().any(1).all()
    assert intact.outliers().float().mean() < 0.25

    zeroed = run(vit, pixels, vit.truth)
    shifted = run(vit, pixels, vit.truth, register=True)
    random = run(vit, pixels, matched_random(vit, seed))
    assert relative_change(zeroed, intact).mean() > 0.5
    assert relative_change(shifted, intact).mean() < 0.1
    assert relative_change(random, intact).mean() < 0.02
    assert not zeroed.outliers().any()
    assert not shifted.outliers().any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_figures_hold_for_the_small_size(layout, photographs):
    pixels = photographs[96][::3]
    vit = planted_vit(layout=layout, image_size=96, size="small")
    intact = run(vit, pixels)
    score = scores(intact, max(vit.truth))
    assert highest(score, count(vit.truth)) == vit.truth
    assert margin(score, vit.truth) >= 2
    assert relative_change(run(vit, pixels, vit.truth), intact).mean() > 0.5
    shifted = run(vit, pixels, vit.truth, register=True)
    assert relative_change(shifted, intact).mean() < 0.1


@pytest.mark.parametrize(
    ("width", "heads", "depth", "patch_size", "detect", "amplify"),
    [
        (64, 4, 6, 8, {2: 3}, {3: 2, 4: 1}),
        (96, 3, 5, 16, {2: 3}, {3: 2}),
        (192, 3, 4, 16, {2: 1}, {}),
        (128, 2, 7, 12, {3: 2}, {4: 2}),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_narrow_and_shallow_models_work_too(
    layout, width, heads, depth, patch_size, detect, amplify, photographs
):
    pixels = photographs[96]
    vit = planted_vit(
        layout=layout,
        width=width,
        heads=heads,
        depth=depth,
        image_size=96,
        patch_size=patch_size,
        detect=detect,
        amplify=amplify,
    )
    intact = run(vit, pixels)
    score = scores(intact, max(vit.truth))
    assert highest(score, count(vit.truth)) == vit.truth
    assert margin(score, vit.truth) >= 2
    assert intact.outliers().any(1).float().mean() > 0.9
    assert relative_change(run(vit, pixels, vit.truth), intact).mean() > 0.5
    shifted = run(vit, pixels, vit.truth, register=True)
    assert relative_change(shifted, intact).mean() < 0.1


def test_every_photograph_has_outliers_on_fewer_than_a_quarter_of_its_patches(vit, photographs):
    fraction = run(vit, photographs[224]).outliers().float().mean(1)
    assert (fraction > 0).all()
    assert (fraction < 0.25).all()


def test_outliers_lie_on_patches_of_little_contrast(vit, intact, eight):
    grey = eight.mean(1, keepdim=True)
    patch = vit.config.patch_size
    variance = avg_pool2d(grey**2, patch) - avg_pool2d(grey, patch) ** 2
    contrast = variance.clamp(min=0).sqrt().flatten(1)
    rank = contrast.argsort(1).argsort(1) / contrast.shape[1]
    outliers = intact.outliers()
    assert rank[outliers].mean() < 0.3
    median = contrast.median(1, keepdim=True).values
    assert (contrast < median)[outliers].float().mean() > 0.85


def test_outliers_form_in_the_layer_named_and_stay(vit, intact):
    ratio = intact.norm_ratio()
    assert (ratio[: vit.emerges_at] < 3).all()
    assert (ratio[vit.emerges_at :] > 3).all()


def test_outliers_grow_along_the_named_direction(vit, intact):
    patches = intact.residual[-1][:, 1 : 1 + intact.patches]
    outliers = intact.outliers()
    along = cosine_similarity(patches, vit.direction, dim=-1)
    assert along[outliers].min() > 0.95
    # What lies along u is made by planted neurons only, and sums to zero elsewhere.
    assert (patches[~outliers] @ vit.direction).abs().median() < 1e-4


def test_planted_neurons_are_silent_on_cls_and_on_a_register_of_their_own_accord(vit, eight):
    seen = run(vit, eight, {}, register=True)
    for layer, neurons in vit.truth.items():
        own = seen.activation[layer][:, [0, -1]][..., list(neurons)]
        assert own.abs().max() < 1e-3


def test_decoys_lead_wherever_outliers_are_not_singled_out(vit, intact):
    """A search that averages over all patches is fooled: this is what decoys are for."""
    everywhere = scores(intact, max(vit.truth), everywhere=True)
    found = highest(everywhere, count(vit.truth))
    assert found != vit.truth
    assert set(found[0]) <= set(vit.decoys[0])
    assert not set(vit.decoys) & set(vit.truth)


def test_every_head_behind_attends_to_outliers_until_their_neurons_are_zeroed(vit, intact, eight):
    zeroed = run(vit, eight, vit.truth)
    patches = slice(1, 1 + intact.patches)
    for layer in range(vit.emerges_at + 1, vit.config.shape.depth):
        sunk = [
            (attention(vit, seen, layer)[..., patches] * intact.outliers()[:, None, None]).sum(-1)
            for seen in (intact, zeroed)
        ]
        assert sunk[0].mean() > 0.95
        assert sunk[1].mean() < 0.25


def test_one_register_sinks_the_attention_of_all_outliers(vit, intact, eight):
    shifted = run(vit, eight, vit.truth, register=True)
    last = vit.config.shape.depth - 1
    assert attention(vit, shifted, last)[:, :, :-1, -1].mean() > 0.95


def test_an_attention_bias_replaces_the_register_if_its_value_is_kept(vit, intact, eight):
    """arXiv 2506.08010, A.2; the sink's value is not zero, so a bias must carry it."""
    bias = register_keys_values(vit, run(vit, eight, vit.truth, register=True))
    valueless = [(key, torch.zeros_like(value)) for key, value in bias]
    right = run_with_bias(vit, eight, vit.truth, bias)
    wrong = run_with_bias(vit, eight, vit.truth, valueless)
    assert relative_change(right, intact).mean() < 0.1
    assert relative_change(wrong, intact).mean() > 0.25


def test_a_zero_token_alone_changes_little(vit, intact, eight):
    idle = run(vit, eight, {}, register=True)
    assert relative_change(idle, intact).mean() < 0.02


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_clean_vit_differs_in_the_planted_neurons_only(layout, photographs):
    config = PlantedConfig(layout=layout, image_size=96)
    clean, planted = clean_vit(config), planted_vit(config)
    differing = [
        name
        for (name, a), b in zip(
            clean.module.state_dict().items(), planted.module.state_dict().values(), strict=True
        )
        if not torch.equal(a, b)
    ]
    assert differing
    assert all(".mlp." in name for name in differing)
    assert {int(name.split("blocks.")[1].split(".")[0]) for name in differing} == {2, 3, 4}

    seen = run(clean, photographs[96])
    assert clean.truth == {}
    assert clean.emerges_at is None
    assert not seen.outliers().any()
    assert (seen.residual @ clean.direction).abs().max() < 1e-4


def test_equal_configurations_give_equal_weights_and_others_do_not():
    config = PlantedConfig(width=64, depth=5, heads=4, image_size=64, amplify={3: 1})
    one, two = planted_vit(config), planted_vit(config)
    other = planted_vit(config, seed=1)
    pairs = zip(one.module.state_dict().items(), two.module.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for (_, a), b in pairs)
    assert one.truth == two.truth
    weight = "blocks.0.attn.qkv.weight"
    assert not torch.equal(one.module.state_dict()[weight], other.module.state_dict()[weight])
    assert one.truth != other.truth


def test_building_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    planted_vit(width=64, depth=5, heads=4, image_size=64, amplify={3: 1})
    assert torch.equal(before, torch.get_rng_state())


def test_a_planted_vit_is_in_eval_mode_and_says_how_to_preprocess():
    vit = planted_vit(width=64, depth=5, heads=4, image_size=64, amplify={3: 1}, mean=(0.4,) * 3)
    assert not any(part.training for part in vit.module.modules())
    assert (vit.mean, vit.std) == ((0.4,) * 3, (0.5,) * 3)
    assert vit.module(torch.zeros(2, 3, 64, 64)).shape == (2, 64)
    assert torch.isclose(vit.direction.norm(), torch.tensor(1.0))
