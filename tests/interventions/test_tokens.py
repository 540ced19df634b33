"""Tokens hidden, kept, deleted; trained registers kept, dropped, fixed, merged."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttreg_interp.errors import InterventionError
from ttreg_interp.interventions import (
    DeleteTokens,
    ExtraTokens,
    KeepTokens,
    LargestNorms,
    MaskTokens,
    Outliers,
    Part,
    RandomPatches,
    TestTimeRegister,
    TrainedRegisters,
    mean_trained_registers,
)

from .kinds import NEURONS
from .laws import batches, cached, few, layouts, n_hooks, run
from .models import D_MODEL, LAYOUTS, N_LAYERS, images, model

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
STRAIGHT = sorted(name for name in LAYOUTS if "rotation" not in name)
"""Layouts whose rows may be deleted."""
WITH_CLS = [name for name in STRAIGHT if "without" not in name]
WITH_REGISTERS = ["timm with 4 trained registers", "timm Eva with rotation"]


@few
@given(layouts, batches)
def test_a_hidden_token_draws_no_attention(layout, pixels):
    first = model(layout).layout().patches.start
    cache = cached(layout, pixels, MaskTokens(((0, 0), (0, 3)), from_layer=1))
    for layer in range(N_LAYERS):
        drawn = cache["pattern", layer][..., [first, first + 3]]
        assert drawn.any() == (layer == 0)


@few
@given(layouts, batches, st.integers(0, 99))
def test_what_a_hidden_token_holds_is_nobody_elses_business(layout, pixels, seed):
    """Its pixels may be anything, if it is hidden from the start."""
    changed = pixels.clone()
    changed[:, :, 8:16, 24:] = torch.randn(
        changed[:, :, 8:16, 24:].shape, generator=torch.Generator().manual_seed(seed)
    )
    hidden = MaskTokens(((1, 3),))
    others = [row for row in range(model(layout).layout().n_tokens)]
    others.remove(model(layout).layout().patches.start + 7)
    rows = [cached(layout, x, hidden)["resid_post", 2][:, others] for x in (pixels, changed)]
    torch.testing.assert_close(*rows, **CLOSE)


@few
@given(layouts, batches, st.integers(1, 15), st.integers(0, 99))
def test_keeping_some_patches_is_hiding_the_others(layout, pixels, n, seed):
    kept = RandomPatches(n, seed)
    hidden = MaskTokens(Part("patches") & ~kept, from_layer=1)
    assert torch.equal(
        run(layout, pixels, KeepTokens(kept, from_layer=1)), run(layout, pixels, hidden)
    )


@few
@given(st.sampled_from(WITH_CLS), batches, st.integers(1, 12), st.integers(1, 2))
def test_for_cls_deleting_is_hiding(layout, pixels, n, layer):
    chosen = LargestNorms(n, layer=layer - 1)
    deleted, hidden = DeleteTokens(chosen, layer), MaskTokens(chosen, layer)
    torch.testing.assert_close(run(layout, pixels, deleted), run(layout, pixels, hidden), **CLOSE)


@few
@given(st.sampled_from(STRAIGHT), batches)
def test_the_rows_that_remain_are_those_of_hiding(layout, pixels):
    """With registers beside: their rows stay too."""
    chosen = ((0, 0), (2, 1), (2, 2))
    rows = model(layout).layout().with_test_time_registers(1)
    left = [r for r in range(rows.n_tokens) if r - rows.patches.start not in (0, 9, 10)]
    register = TestTimeRegister(NEURONS)
    caches = [
        cached(layout, pixels, register + kind(chosen, 2)) for kind in (DeleteTokens, MaskTokens)
    ]
    remaining, hidden = (cache["resid_post", 2][:, left] for cache in caches)
    torch.testing.assert_close(remaining, hidden, **CLOSE)
    assert caches[0]["resid_mid", 2].shape[1] == rows.n_tokens - 3


def test_every_image_can_delete_patches_of_its_own():
    layout, pixels = WITH_CLS[0], images(2)
    per_image = (((0, 0), (1, 1)), ((3, 3), (2, 0)))
    together = run(layout, pixels, DeleteTokens(per_image, 1))
    for i, own in enumerate(per_image):
        alone = run(layout, pixels[i, None], DeleteTokens(own, 1))
        torch.testing.assert_close(alone[0], together[i], **CLOSE)


@pytest.mark.parametrize("fill", ["neighbours", "mean", "last"])
def test_deleted_rows_are_filled_for_the_readers(fill):
    layout, pixels = WITH_CLS[0], images(2)
    cache = cached(layout, pixels, DeleteTokens(((0, 0), (0, 1)), 2, fill))
    grid = cache.layout.grid(cache["resid_post", 2], token_axis=1)
    left = grid.flatten(1, 2)[:, 2:]
    expected = {
        "neighbours": torch.stack((grid[:, 1, 0], grid[:, 1, 1]), 1).mean(1),
        "mean": left.mean(dim=1),
        "last": cached(layout, pixels)["resid_post", 1][:, 1],
    }[fill]
    torch.testing.assert_close(grid[:, 0, 0], expected, **CLOSE)


@pytest.mark.parametrize(
    ("deletion", "message"),
    [
        (DeleteTokens("all", 1), r"\[CLS\] and registers are among them"),
        (DeleteTokens(Outliers(24.5, layer=0), 1), "Delete the same number in each"),
        (DeleteTokens((((0, 0),), ()), 1), r"\[1, 0\] rows of 17"),
    ],
)
def test_deletions_that_cannot_be(deletion, message):
    with pytest.raises(InterventionError, match=message):
        run(WITH_CLS[0], images(2), deletion)


def test_deletion_is_refused_where_positions_would_shift():
    with pytest.raises(InterventionError, match="rotates queries and keys.*MaskTokens"):
        run("timm Eva with rotation", images(1), DeleteTokens(((0, 0),), 1))


def test_rows_are_deleted_once():
    with pytest.raises(InterventionError, match="Two DeleteTokens.*combine with |"):
        DeleteTokens(((0, 0),), 1) + DeleteTokens(((0, 1),), 2)


def test_a_selection_from_before_a_deletion_does_not_fit_after_it():
    layout = WITH_CLS[0]
    late = DeleteTokens(((0, 0),), 1) + MaskTokens(LargestNorms(2, layer=0), 2)
    with pytest.raises(InterventionError, match="found among 17 tokens, but 16 are left"):
        run(layout, images(1), late)
    assert n_hooks(layout) == 0


@pytest.mark.parametrize("layout", WITH_REGISTERS)
def test_dropped_trained_registers_are_hidden_tokens(layout):
    pixels = images(3)
    dropped = TrainedRegisters("dropped", from_layer=1)
    hidden = MaskTokens("trained_registers", from_layer=1)
    assert torch.equal(run(layout, pixels, dropped), run(layout, pixels, hidden))


@pytest.mark.parametrize("layout", WITH_REGISTERS)
def test_kept_trained_registers_are_the_plain_model(layout):
    assert torch.equal(run(layout, images(2), TrainedRegisters("kept")), run(layout, images(2)))


@pytest.mark.parametrize("layout", WITH_REGISTERS)
def test_fixed_trained_registers_are_their_mean_in_every_image(layout):
    pixels = images(4)
    fixed = mean_trained_registers(model(layout), pixels.split(2), from_layer=1)
    plain, cache = cached(layout, pixels), cached(layout, pixels, fixed)
    rows = model(layout).layout().trained_registers
    for layer in (1, 2):
        expected = plain["resid_post", layer][:, rows].mean(dim=0, keepdim=True)
        torch.testing.assert_close(
            cache["resid_post", layer][:, rows], expected.expand(4, -1, -1), **CLOSE
        )
    assert torch.equal(cache["resid_post", 0], plain["resid_post", 0])


@pytest.mark.parametrize("layout", WITH_REGISTERS)
def test_the_mean_of_one_image_fixes_its_registers_to_what_they_are(layout):
    pixels = images(1)
    fixed = mean_trained_registers(model(layout), [pixels])
    torch.testing.assert_close(run(layout, pixels, fixed), run(layout, pixels), **CLOSE)


@pytest.mark.parametrize("layout", WITH_REGISTERS)
def test_merged_trained_registers_are_one_token_of_the_largest_entries(layout):
    pixels = images(2)
    cache = cached(layout, pixels, TrainedRegisters("synthetic", from_layer=2))
    rows = model(layout).layout().trained_registers
    before = cached(layout, pixels)["resid_post", 1][:, rows]
    high, low = before.amax(dim=1), before.amin(dim=1)
    expected = torch.where(high.abs() >= low.abs(), high, low)
    torch.testing.assert_close(cache["resid_pre", 2][:, rows.start], expected)
    assert not cache["pattern", 2][..., rows.start + 1 : rows.stop].any()


def test_only_one_value_says_what_becomes_of_trained_registers():
    with pytest.raises(InterventionError, match="both say what becomes"):
        TrainedRegisters("dropped") + (ExtraTokens() + TrainedRegisters("kept"))


@pytest.mark.parametrize(
    ("intervention", "message"),
    [
        (TrainedRegisters("dropped"), "has no trained registers.*TestTimeRegister"),
        (TrainedRegisters("mean", torch.zeros(1, 4, D_MODEL)), "has no trained registers"),
    ],
)
def test_models_without_trained_registers_are_told_apart(intervention, message):
    with pytest.raises(InterventionError, match=message):
        run("timm with [CLS]", images(1), intervention)


def test_means_must_fit_the_trained_registers():
    layout = "timm with 4 trained registers"
    with pytest.raises(InterventionError, match=r"\[2, 3, 32\].*\[layer, 4, 32\].*1 to 3 layers"):
        run(layout, images(1), TrainedRegisters("mean", torch.zeros(2, 3, D_MODEL)))
    with pytest.raises(InterventionError, match="needs means"):
        TrainedRegisters("mean")
