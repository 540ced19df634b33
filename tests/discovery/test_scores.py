"""Scores of neurons: each is its formula, and one streaming pass is all that is needed."""

from dataclasses import replace

import pytest
import torch

from tests.discovery.models import Push, hooked, marked_vit, noise_images
from ttreg_interp.discovery import FindConfig, Shard
from ttreg_interp.discovery.capture import mlp_inputs
from ttreg_interp.discovery.config import SCORES
from ttreg_interp.discovery.observe import N_ORDINARY, draw_ordinary
from ttreg_interp.discovery.scores import STATISTICS, NeuronScores, read_scores
from ttreg_interp.discovery.scoring import ScoringRun, score
from ttreg_interp.errors import DataError

PUSH = Push(layer=2, neuron=7, places=(0, 5))
CONFIG = FindConfig(held_out=0.0, first_layer=0, batch_size=5, detect_layer=3)


def scored(model, images, config=CONFIG) -> NeuronScores:
    run = ScoringRun.of(model, images, config)
    state = score(run, None)
    return read_scores(model, run.layers(state.detection.detect_layer), state.sums)


def models() -> dict[str, object]:
    from timm.layers import RmsNorm, SwiGLU

    return {
        "plain": marked_vit(PUSH),
        "no [CLS]": marked_vit(PUSH, class_token=False),
        "LayerScale": marked_vit(PUSH, init_values=0.7),
        "gated": _gated(marked_vit(mlp_layer=SwiGLU, norm_layer=RmsNorm)),
        "registers": marked_vit(reg_tokens=2),
    }


@torch.no_grad()
def _gated(vit):
    vit.pos_embed[0, [1, 6], 0] = 6
    mlp = vit.blocks[2].mlp
    for linear in (mlp.fc1_g, mlp.fc1_x):
        linear.weight[7] = 0
        linear.weight[7, 0], linear.bias[7] = 2.5, -2
    mlp.fc2.weight[:, 7] = 0
    mlp.fc2.weight[3, 7] = 5
    return vit


def by_hand(model, images, config=CONFIG) -> dict[str, torch.Tensor]:
    """All scores from held activations, token by token, as their definition says."""
    run = ScoringRun.of(model, images, config)
    threshold = run.start(Shard()).detection.threshold.value
    _, cache = model.run_with_cache(images)
    layout = cache.layout
    resid = cache["resid_post", 3].double()
    above = resid.norm(dim=-1) > threshold
    above[:, : layout.n_prefix] = False
    ordinary = draw_ordinary(above, layout, torch.arange(len(images)), seed=0)
    post = torch.stack([cache["post", layer] for layer in range(4)]).double()
    rows = torch.stack([block.mlp.W_out for block in model.blocks]).double()
    per_image = {name: [] for name in STATISTICS}
    for i in above.any(dim=1).nonzero().flatten().tolist():
        on, off = post[:, i, above[i]], post[:, i, ordinary[i]]
        away = resid[i, above[i]] - resid[i, ordinary[i]].mean(dim=0)
        away = away / away.norm(dim=-1, keepdim=True)
        beyond = on - off.mean(dim=1, keepdim=True)
        along = torch.einsum("lnd,od->lon", rows, away)
        per_image["abs"].append(on.abs().mean(dim=1))
        per_image["signed"].append(on.mean(dim=1))
        per_image["ordinary"].append(off.mean(dim=1))
        per_image["square"].append((on.square().mean(dim=1) + off.square().mean(dim=1)) / 2)
        per_image["projection"].append((beyond * along).mean(dim=1))
    mean = {name: torch.stack(values).mean(dim=0) for name, values in per_image.items()}
    centre = (mean["signed"] + mean["ordinary"]) / 2
    spread = (mean["square"] - centre.square()).clamp_min(1e-12).sqrt()
    return {
        "abs": mean["abs"],
        "signed": mean["signed"],
        "contrast": (mean["signed"] - mean["ordinary"]) / spread,
        "contribution": mean["abs"] * rows.norm(dim=-1),
        "projection": mean["projection"],
    }


@pytest.mark.parametrize("name", ["plain", "no [CLS]", "LayerScale", "gated"])
def test_every_score_is_its_formula_over_held_activations(name):
    model, images = hooked(models()[name]), noise_images(7)
    found, expected = scored(model, images), by_hand(model, images)
    for score_name in SCORES:
        rtol = 2e-3 if score_name == "contrast" else 1e-4  # a ratio of small numbers
        torch.testing.assert_close(
            found.score(score_name), expected[score_name], rtol=rtol, atol=2e-5
        )


def test_projections_of_all_that_writes_add_up_to_the_excess():
    """Neurons, attention, embedding and biases together wrote the outliers, nothing else did."""
    model, images = hooked(marked_vit(PUSH)), noise_images(6)
    found = scored(model, images)
    assert float(found.layer_share().sum()) == pytest.approx(1, abs=0.05)
    assert float(found.layer_share()[2]) > 0.9
    assert found.score("projection")[2, 7] / found.excess > 0.9
    assert found.direction.norm() == pytest.approx(1)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 16])
def test_the_batch_size_does_not_matter(batch_size):
    model, images = hooked(marked_vit(PUSH)), noise_images(7)
    one, other = (
        scored(model, images, replace(CONFIG, batch_size=size)) for size in (5, batch_size)
    )
    for name in STATISTICS:
        torch.testing.assert_close(
            one.statistics[name], other.statistics[name], rtol=1e-5, atol=1e-5
        )


def test_images_without_outliers_do_not_count():
    """The mean is over the images that have some, as in the authors' code."""
    model, images = hooked(marked_vit(PUSH)), noise_images(8)
    _, cache = model.run_with_cache(images)
    largest = cache["resid_post", 3][:, 1:].norm(dim=-1).amax(dim=1)
    between = float(largest.sort().values[4:6].mean())
    config = replace(CONFIG, threshold="absolute", threshold_value=between)
    found, expected = scored(model, images, config), by_hand(model, images, config)
    assert found.n_images == 3
    torch.testing.assert_close(found.score("abs"), expected["abs"], rtol=1e-4, atol=2e-5)
    nowhere = replace(config, threshold_value=1e6)
    with pytest.raises(DataError, match="No image has an outlier.*Lower the threshold"):
        scored(model, images, nowhere)


def test_an_unknown_score_is_refused_with_the_known_ones():
    found = scored(hooked(marked_vit(PUSH)), noise_images(4))
    with pytest.raises(DataError, match="signed, .*, projection; found 'norm'"):
        found.score("norm")


def test_ties_are_ranked_by_layer_and_neuron():
    statistics = {name: torch.zeros(2, 3, dtype=torch.float64) for name in STATISTICS}
    statistics["abs"][1, 2] = 1
    tied = NeuronScores(
        statistics, range(4, 6), torch.ones(2, 3).double(), torch.ones(3).double(), 1.0, 1
    )
    order = [row[:2] for row in tied.ranking("abs")]
    assert order == [(5, 2), (4, 0), (4, 1), (4, 2), (5, 0), (5, 1)]
    assert [row[:2] for row in tied.ranking("abs", range(4, 5))] == [(4, 0), (4, 1), (4, 2)]


def test_ordinary_tokens_are_patches_that_are_no_outliers_drawn_from_number_and_seed():
    layout = hooked(marked_vit()).layout()
    outliers = torch.zeros(3, layout.n_tokens, dtype=torch.bool)
    outliers[0, 3:6], outliers[1, 2:] = True, True
    index = torch.tensor([4, 9, 12])
    drawn = draw_ordinary(outliers, layout, index, seed=0)
    assert not (drawn & outliers).any()
    assert not drawn[:, 0].any()
    assert drawn.sum(dim=1).tolist() == [N_ORDINARY, 1, N_ORDINARY]
    alone = draw_ordinary(outliers[2:], layout, index[2:], seed=0)
    assert torch.equal(alone[0], drawn[2])
    assert not torch.equal(draw_ordinary(outliers, layout, index, seed=1), drawn)


def test_what_a_batch_retains_is_the_mlp_inputs_not_the_neurons():
    """At ViT-B/16 that is 11 x 197 x 768 floats, and the detection layer's: 7 MiB an image."""
    model, images = hooked(marked_vit(PUSH)), noise_images(4)
    with torch.no_grad(), mlp_inputs(model, range(1, 4)) as inputs:
        model(images)
    assert {layer: value.shape for layer, value in inputs.items()} == dict.fromkeys(
        range(1, 4), torch.Size([4, 17, 64])
    )
    vit_b = (11 + 1) * 197 * 768 * 4 / 2**20
    assert vit_b < 7


def test_the_state_of_a_model_of_the_size_of_internvit_stays_under_50_mb():
    assert len(STATISTICS) * 45 * 12_800 * 8 < 50e6
    scores = scored(hooked(marked_vit(PUSH)), noise_images(4))
    run = ScoringRun.of(hooked(marked_vit(PUSH)), noise_images(4), CONFIG)
    sums = score(run, None).sums.sums
    per_neuron = [name for name, value in sums.items() if value.shape == scores.row_norms.shape]
    assert sorted(per_neuron) == sorted(STATISTICS)
    assert all(sums[name].dtype == torch.int64 for name in per_neuron)
