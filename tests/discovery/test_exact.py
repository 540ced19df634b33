"""Sums in fixed point: order, grouping and interruption leave no trace."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.discovery.laws import law, seeds
from ttreg_interp.discovery.exact import ExactSums
from ttreg_interp.errors import ContractError


def added(values: torch.Tensor) -> ExactSums:
    sums = ExactSums()
    for row in values:
        sums.add("score", row)
        sums.count("n", (row > 0).sum())
    return sums


def same(a: ExactSums, b: ExactSums) -> bool:
    return a.sums.keys() == b.sums.keys() and all(torch.equal(a.sums[k], b.sums[k]) for k in a.sums)


@law
@given(seeds, st.integers(1, 5))
def test_any_order_and_any_split_into_shards_give_the_same_bits(seed, n_shards):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(12, 7, generator=generator) * 1000
    whole = added(values)
    order = torch.randperm(12, generator=generator)
    assert same(whole, added(values[order]))
    shards = [added(values[number::n_shards]) for number in range(n_shards)]
    assert same(whole, ExactSums.merged(shards))
    assert (whole["score"] - values.double().sum(dim=0)).abs().max() < 12 * 2**-22


def test_merging_leaves_the_parts_as_they_were():
    part = added(torch.ones(3, 2))
    before = {name: value.clone() for name, value in part.sums.items()}
    ExactSums.merged([part, part])
    assert all(torch.equal(part.sums[name], before[name]) for name in before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e15])
def test_what_does_not_fit_stops_the_run(bad):
    with pytest.raises(ContractError, match="score.*wider dtype"):
        ExactSums().add("score", torch.tensor([1.0, bad]))
