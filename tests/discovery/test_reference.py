"""semantics="reference" gives what the authors' code gave on the same weights and images."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ttreg_interp.discovery import FindConfig, Shard, find_register_neurons
from ttreg_interp.discovery.capture import residual_norms
from ttreg_interp.discovery.observe import Observer
from ttreg_interp.discovery.scores import read_scores
from ttreg_interp.discovery.scoring import ScoringRun, score
from ttreg_interp.discovery.stream import Batch
from ttreg_interp.hooked import HookedViT

CASES = (
    "rank_a",
    "rank_b_sparse",
    "rank_c_layer-2",
    "rank_d_low_threshold_includes_cls",
    "rank_e_sparse_strict",
    "rank_f_threshold_equals_a_norm",
    "rank_g_layer1",
)


@pytest.fixture(scope="module")
def reference(golden):
    """Tensors and case descriptions of the authors' code."""
    file = golden / "ref_clip_small.safetensors"
    cases = json.loads(file.with_suffix(".json").read_text())
    return {name: tensor.float() for name, tensor in load_file(file).items()}, cases


@pytest.fixture(scope="module")
def model(reference):
    from open_clip.transformer import VisionTransformer

    tower = VisionTransformer(64, 16, 128, 6, 2, 4.0, output_dim=64)
    weights = {k.removeprefix("w."): v for k, v in reference[0].items() if k.startswith("w.")}
    tower.load_state_dict(weights)
    return HookedViT.wrap(tower.eval())


def config_of(case: dict) -> FindConfig:
    sparsity = None
    if case["apply_sparsity_filter"]:
        share = case.get("sparsity_frac_threshold", 0.5)
        sparsity = (case.get("sparsity_activation_threshold", 0.5), share)
    threshold = case["register_norm_threshold"]
    if case["outlier_tokens"] == 1:  # the stored norm itself, which rounds either way here
        threshold += 1e-3
    return FindConfig(
        semantics="reference",
        threshold_value=threshold,
        detect_layer=case["detect_outliers_layer"],
        first_layer=0,
        last_layer=-1,
        top_k=10,
        sparsity=sparsity,
        held_out=0.0,
        evidence=False,
    )


@pytest.mark.parametrize("name", CASES)
def test_scores_and_ranking_are_the_reference_s(reference, model, name):
    tensors, cases = reference
    config = config_of(cases[name])
    run = ScoringRun.of(model, tensors["x"], config)
    state = score(run, None)
    scores = read_scores(model, run.layers(state.detection.detect_layer), state.sums).score("abs")
    expected = tensors[f"{name}.scores"].double()
    assert (scores - expected).abs().max() < 1e-5
    assert state.sums.whole("images") == cases[name]["images_with_outliers"]

    found = find_register_neurons(model, tensors["x"], config)
    pairs = [row[:2] for row in found.ranking[:100]]
    wanted = [tuple(pair) for pair in tensors[f"{name}.top100_layer_neuron"].int().tolist()]
    values = tensors[f"{name}.top100_score"].tolist()
    for place in range(50):  # only where neighbouring scores differ by more than the tolerance
        gaps = [abs(values[place] - values[i]) for i in (place - 1, place + 1) if i >= 0]
        if values[place] > 0 and min(gaps) > 2e-5:
            assert pairs[place] == wanted[place]


def test_the_outlier_tokens_are_the_reference_s_with_cls_among_them(reference, model):
    tensors, cases = reference
    name = "rank_d_low_threshold_includes_cls"
    run = ScoringRun.of(model, tensors["x"], config_of(cases[name]))
    state = run.start(Shard())
    observer = Observer(model, state.detection, range(0))
    batch = Batch(tensors["x"], torch.arange(8))
    seen = observer(batch)
    assert torch.equal(seen.outliers, tensors[f"{name}.outlier_mask"].bool())
    assert int(seen.outliers[:, 0].sum()) == cases[name]["cls_outliers"]


def test_a_token_at_the_threshold_is_no_outlier(reference, model):
    tensors, _ = reference
    norms = residual_norms(model, tensors["x"])[0][-1, 1]
    highest = float(norms.max())
    config = FindConfig(
        semantics="reference", threshold_value=highest, detect_layer=-1, held_out=0.0
    )
    found = find_register_neurons(model, tensors["x"], config)
    assert len(found) == 0
    assert "No outliers" in found.caveats[0]
