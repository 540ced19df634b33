"""Activation by rank: how few patches a neuron fires on, against the other neurons of its layer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.report.models import pixels_for, tiny
from ttreg_interp.interventions import Empty, ExtraTokens
from ttreg_interp.report.neurons import CONTROL, MOST_CURVES, neuron_facts, sparsity_chart
from ttreg_interp.report.record import record_run
from ttreg_interp.report.run import Run
from ttreg_interp.report.sparsity import by_rank, ranks


@given(st.integers(1, 3000))
def test_ranks_rise_from_the_first_to_the_last(n_patches):
    kept = ranks(n_patches)
    assert kept[0] == 1
    assert kept[-1] == n_patches
    assert kept == sorted(set(kept))
    assert all(later <= 2 * rank for rank, later in zip(kept, kept[1:], strict=False))


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40).map(torch.tensor))
def test_activation_falls_from_one_and_knows_no_sign_and_no_order(activation):
    curve = by_rank(activation)
    assert (curve.diff() <= 0).all()
    assert curve[0] == (1 if activation.any() else 0)
    assert torch.equal(curve, by_rank(-activation.flip(0)))


def test_mapped_neurons_are_compared_with_all_of_their_layers(tmp_path):
    model = tiny()
    neurons = {0: list(range(MOST_CURVES)), 2: [11]}
    arms = {"added": ExtraTokens(1), "intact": Empty()}
    run = Run.load(record_run(model, pixels_for(model), arms, tmp_path, neurons=neurons))
    chart = sparsity_chart(run, neuron_facts(run))
    with model.intervened(arms["added"]):
        _, cache = model.run_with_cache(pixels_for(model))
    posts = [cache["post", layer][:, cache.layout.patches].transpose(1, 2) for layer in (0, 2)]
    names = [name for name, _ in chart.series]
    assert names == [CONTROL, *(f"layer 0, neuron {n}" for n in range(MOST_CURVES))]
    control = by_rank(torch.cat(posts)).mean(dim=(0, 1))
    assert chart.series[0][1] == pytest.approx(control.tolist(), rel=1e-4)
    assert chart.series[1][1] == pytest.approx(by_rank(posts[0])[:, 0].mean(0).tolist(), rel=1e-4)
    assert chart.x == (1, 2, 4, 8, 16)
