"""How much attention is kept: all of it where it fits, else the finest blocks that do."""

import pytest
import torch

from tests.report.models import tiny
from ttreg_interp.hooked import TokenLayout
from ttreg_interp.interventions import Empty, ExtraTokens
from ttreg_interp.report import plan as plans
from ttreg_interp.report.blocks import TokenBlocks
from ttreg_interp.report.plan import BUDGET, RowSet, plan_arms

ARMS = {"intact": Empty(), "register": ExtraTokens(2)}


def size(plan: plans.Plan, kind: str) -> int:
    rows = plan.rows[kind]
    return rows.queries.n_rows * rows.keys.n_rows


def planned(model, n_images: int, **budget: int) -> dict[str, plans.Plan]:
    return plan_arms(model, torch.Size((1, 3, *model.image_size)), ARMS, n_images)


def test_small_models_keep_every_query_key_and_head():
    for plan in planned(tiny(), n_images=12).values():
        for kind in ("tokens", "heads"):
            assert (plan.rows[kind].queries.side, plan.rows[kind].keys.side) == (1, 1)


def test_twelve_images_of_a_vit_base_keep_every_patch_as_a_query():
    layout = TokenLayout(1, 0, 14, 14, n_test_time_registers=1)
    queries, keys = plans._first_within(
        plans._queries_first(layout), n_patterns=12 * 12 * 2, budget=BUDGET["tokens"]
    )
    assert (queries.side, keys.side) == (1, 1)


@pytest.mark.parametrize("budget", [40_000, 20_000, 8_000, 3_000])
def test_plans_stay_within_the_budget(monkeypatch, budget):
    model = tiny(img_size=64)
    monkeypatch.setattr(plans, "BUDGET", {"tokens": budget, "heads": budget})
    arms = planned(model, n_images=2)
    per_arm = 2 * model.cfg.n_layers
    assert sum(per_arm * size(plan, "tokens") for plan in arms.values()) <= budget
    assert sum(per_arm * 2 * size(plan, "heads") for plan in arms.values()) <= budget


def test_blocks_are_the_same_under_every_arm(monkeypatch):
    monkeypatch.setattr(plans, "BUDGET", {"tokens": 20_000, "heads": 8_000})
    intact, register = planned(tiny(img_size=64), n_images=2).values()
    assert {kind: rows.to_dict() for kind, rows in intact.rows.items()} == {
        kind: rows.to_dict() for kind, rows in register.rows.items()
    }
    assert intact.code == register.code


def test_exact_rows_have_every_key_and_the_mean_patch_also_where_others_have_blocks(monkeypatch):
    monkeypatch.setattr(plans, "BUDGET", {"tokens": 3_000, "heads": 3_000})
    plan = planned(tiny(img_size=64), n_images=2)["intact"]
    assert plan.rows["tokens"].keys.side > 1
    assert plan.rows["exact"].keys.side == 1
    assert plan.rows["exact"].queries.grid == (1, 1)


def test_by_head_keys_are_finer_than_queries():
    layout = TokenLayout(1, 0, 14, 14)
    queries, keys = plans._first_within(plans._keys_first(layout), 12 * 12 * 2 * 12, 3_000_000)
    assert keys.side == 1 < queries.side


def test_the_last_resort_is_one_block():
    layout = TokenLayout(1, 0, 5, 3)
    for candidates in (plans._queries_first(layout), plans._keys_first(layout)):
        queries, keys = plans._first_within(candidates, n_patterns=10**9, budget=1)
        assert queries.grid == keys.grid == (1, 1)


@pytest.mark.parametrize("sides", [(1, 1), (2, 1), (2, 2), (9, 3)])
@pytest.mark.parametrize("n_bias_keys", [0, 2])
def test_rows_sum_to_one_with_what_goes_elsewhere(sides, n_bias_keys):
    layout = TokenLayout(1, 1, 3, 4)
    rows = RowSet(TokenBlocks(layout, sides[0]), TokenBlocks(layout, sides[1]), by_head=True)
    pattern = torch.rand(2, 3, layout.n_tokens, layout.n_tokens + n_bias_keys).softmax(dim=-1)
    kept = rows.read(pattern)
    torch.testing.assert_close(kept.sum(dim=-1), torch.ones(kept.shape[:-1]))
    elsewhere = pattern[:, :, 0, :n_bias_keys].sum(dim=-1)
    torch.testing.assert_close(kept[:, :, 0, 0], elsewhere)
