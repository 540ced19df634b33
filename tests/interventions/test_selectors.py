"""Selectors find the right rows on every layout, image size and batch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttreg_interp.errors import InterventionError
from ttreg_interp.interventions import (
    Boxes,
    ExtraTokens,
    LargestNorms,
    Mask,
    MaskTokens,
    Outliers,
    Part,
    PatchActivation,
    Positions,
    RandomPatches,
    Rows,
    Shape,
    ZeroNeurons,
    select,
)

from .laws import as_users_run, batches, cached, few, law, layouts, run
from .models import GRID, LAYOUTS, images, model


def chosen(layout, selector, pixels=None, n_registers=0):
    """Rows that a selector selects in a run, [image, token]."""
    pixels = images(2) if pixels is None else pixels
    mark = PatchActivation("blocks.2.hook_resid_post", torch.tensor(1e6), tokens=selector)
    extra = [ExtraTokens(n_registers)] if n_registers else []
    return (cached(layout, pixels, *extra, mark)["resid_post", 2] == 1e6).all(dim=-1)


@few
@given(layouts, st.integers(0, 3))
def test_parts_are_those_of_the_layout(layout, n_registers):
    rows = model(layout).layout().with_test_time_registers(n_registers)
    for part in ("cls", "trained_registers", "test_time_registers", "patches"):
        expected = torch.zeros(2, rows.n_tokens, dtype=torch.bool)
        expected[:, getattr(rows, part)] = True
        if expected.any():
            assert torch.equal(chosen(layout, part, n_registers=n_registers), expected)
        else:
            with pytest.raises(InterventionError, match=f"has no {part.replace('_', ' ')}"):
                chosen(layout, part, n_registers=n_registers)


@pytest.mark.parametrize("point", ["hook_embed", "hook_full_embed"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_patches_are_found_before_registers_stand_in_front_of_them(layout, point):
    """Registers enter at `hook_full_embed`: who edits before them meets fewer rows."""
    mark = PatchActivation(point, torch.tensor(7.0), tokens=Part("patches") & ~Positions(((0, 0),)))
    plain = cached(layout, images(2), mark)[point]
    rows = model(layout).layout()
    expected = torch.zeros(2, rows.n_tokens, dtype=torch.bool)
    expected[:, rows.patches.start + 1 :] = True
    assert torch.equal((plain == 7).all(dim=-1), expected)
    behind = slice(rows.patches.start, None)
    for arms in [(mark + ExtraTokens(2),), (mark, ExtraTokens(2)), (ExtraTokens(2) + mark,)]:
        found = cached(layout, images(2), *arms)
        last = found["hook_full_embed"][:, 2 + rows.patches.start :]
        without = cached(layout, images(2), mark)["hook_full_embed"][:, behind]
        torch.testing.assert_close(last, without)
        assert found["hook_full_embed"].shape[1] == rows.n_tokens + 2


@few
@given(layouts, batches)
def test_selectors_combine_as_sets(layout, pixels):
    a, b = Shape("disc"), Positions(((0, 0), (1, 1)))
    one, other = chosen(layout, a, pixels), chosen(layout, b, pixels)
    assert torch.equal(chosen(layout, a | b, pixels), one | other)
    assert torch.equal(chosen(layout, a & b, pixels), one & other)
    assert torch.equal(chosen(layout, ~a, pixels), ~one)


@law
@given(
    layouts,
    st.tuples(st.integers(0, 31), st.integers(0, 31)),
    st.tuples(st.integers(1, 32), st.integers(1, 32)),
    st.integers(0, 2),
)
def test_a_box_selects_the_patches_of_which_it_covers_a_pixel(layout, corner, size, n_registers):
    (left, top), (width, height) = corner, size
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    boxes = Boxes(((left, top, left + width, top + height),))
    assert torch.equal(
        chosen(layout, boxes, n_registers=n_registers),
        chosen(layout, Mask(mask, "pixels"), n_registers=n_registers),
    )


def test_a_mask_in_pixels_may_have_to_cover_a_share():
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[:4, :8] = True  # half of the first patch
    mask[8:, 8:16] = True  # three whole ones
    layout = "timm SigLIP without [CLS]"
    assert chosen(layout, Mask(mask, "pixels")).sum().item() == 2 * 4
    assert chosen(layout, Mask(mask, "pixels", share=0.5)).sum().item() == 2 * 3


@pytest.mark.parametrize("layout", LAYOUTS)
def test_positions_and_masks_and_rows_agree(layout):
    first = model(layout).layout().patches.start
    mask = torch.zeros(GRID, GRID, dtype=torch.bool)
    mask[2, 1] = mask[0, 3] = True
    for selector in (((2, 1), (0, 3)), mask, (first + 9, first + 3), Rows((first + 3, first + 9))):
        assert chosen(layout, selector)[0].nonzero()[:, 0].tolist() == [first + 3, first + 9]


def test_targets_for_every_image():
    layout, pixels = "timm with [CLS]", images(2)
    mask = torch.zeros(2, GRID, GRID, dtype=torch.bool)
    mask[0, 0, 0] = mask[1, 3, 3] = True
    per_image = [
        Mask(mask),
        Positions((((0, 0),), ((3, 3),))),
        Rows(((1,), (16,))),
        Boxes((((0, 0, 8, 8),), ((24, 24, 32, 32),))),
    ]
    for selector in per_image:
        assert chosen(layout, selector, pixels).nonzero().tolist() == [[0, 1], [1, 16]]
        with pytest.raises(InterventionError, match="Targets for 2 images.*batch of 3"):
            chosen(layout, selector, images(3))


def test_targets_for_every_image_in_attention():
    layout, pixels = "timm with [CLS]", images(2)
    hidden = MaskTokens((((0, 0),), ((3, 3), (0, 0))))
    pattern = cached(layout, pixels, hidden)["pattern", 0]
    assert not pattern[0, ..., 1].any()
    assert pattern[0, ..., 16].all()
    assert not pattern[1, ..., [1, 16]].any()
    with pytest.raises(InterventionError, match="batch of 1"):
        run(layout, images(1), hidden)


@few
@given(layouts, batches, st.floats(5, 40))
def test_outliers_are_the_patches_above_the_threshold_of_this_run(layout, pixels, threshold):
    norms = cached(layout, pixels)["resid_post", 1].norm(dim=-1)
    patches = torch.zeros_like(norms, dtype=torch.bool)
    patches[:, model(layout).layout().patches] = True
    expected = (norms > threshold) & patches
    assert torch.equal(chosen(layout, Outliers(threshold, layer=1), pixels), expected)
    assert torch.equal(
        chosen(layout, Outliers(threshold, layer=1) | Part("all"), pixels), patches | True
    )


@few
@given(layouts, batches, st.integers(1, 16), st.sampled_from(["l2", "max"]))
def test_the_largest_norms_are_as_many_in_every_image(layout, pixels, n, norm):
    found = chosen(layout, LargestNorms(n, layer=0, norm=norm), pixels)
    assert (found.sum(dim=1) == n).all()
    patches = cached(layout, pixels)["resid_post", 0][:, model(layout).layout().patches]
    size = patches.abs().amax(-1) if norm == "max" else patches.norm(dim=-1)
    selected = found[:, model(layout).layout().patches]
    smallest_in = size.masked_fill(~selected, torch.inf).amin(dim=1)
    largest_out = size.masked_fill(selected, 0).amax(dim=1)
    assert (smallest_in >= largest_out).all()


def test_outliers_of_a_block_that_did_not_run_are_not_known():
    hooked = model("timm with [CLS]")
    late = ZeroNeurons({2: [7]}, tokens=Outliers(10.0, layer=0))
    with torch.no_grad():
        residual = hooked(images(1), stop_at_layer=1)
        with (
            pytest.raises(
                InterventionError, match="mlp.hook_post, but block 0 did not run in this"
            ),
            hooked.intervened(late),
        ):
            hooked(residual, start_at_layer=1)


def test_outliers_of_one_forward_pass_are_not_those_of_the_next():
    hooked = model("timm with [CLS]")
    late = ZeroNeurons({2: [7]}, tokens=Outliers(10.0, layer=0))
    with torch.no_grad(), hooked.intervened(late):
        residual = hooked(images(1), stop_at_layer=1)
        with pytest.raises(InterventionError, match="block 0 did not run in this forward pass"):
            hooked(residual, start_at_layer=1)
        whole = hooked(images(2))
        assert torch.equal(whole, hooked(images(2)))


def test_outliers_are_known_only_after_their_block():
    layout = "timm with [CLS]"
    late = PatchActivation("blocks.1.hook_resid_mid", torch.tensor(0.0), Outliers(10.0, layer=1))
    with pytest.raises(InterventionError, match="known after block 1.*resid_mid, before"):
        run(layout, images(1), late)
    same = PatchActivation("blocks.1.hook_resid_post", torch.tensor(0.0), Outliers(10.0, layer=1))
    assert not torch.equal(run(layout, images(1), same), run(layout, images(1)))


def test_drawings_look_like_what_they_are_called():
    from ttreg_interp.interventions.frame import PatchGrid

    grid = PatchGrid(14, 14, 16, 16)
    drawn = {name: Shape(name).on_grid(grid)[0] for name in ("heart", "disc", "ring", "cross")}
    heart, disc = drawn["heart"], drawn["disc"]
    assert torch.equal(heart, heart.flip(1))
    assert heart[:2, 6:8].sum() < heart[:2, 2:5].sum()  # the notch
    assert heart[11:].any(dim=0).sum() < heart[4].sum() / 2  # the point
    assert torch.equal(disc, disc.T)
    assert disc[7, 7]
    assert not drawn["ring"][7, 7]
    assert drawn["cross"][7].all()
    assert not drawn["cross"][0, 0]


def test_random_patches_depend_on_the_seed_only():
    layout = "timm with [CLS]"
    draws = [chosen(layout, RandomPatches(3, seed)) for seed in range(4)]
    assert all((draw.sum(dim=1) == 3).all() for draw in draws)
    assert len({tuple(draw[0].tolist()) for draw in draws}) > 1
    assert torch.equal(draws[0], chosen(layout, RandomPatches(3, 0)))
    assert torch.equal(draws[0][0], draws[0][1])


def test_other_image_sizes_are_named_by_the_selector():
    layout = "timm with 4 trained registers"
    pixels = torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(0))
    assert chosen(layout, "patches", pixels).sum().item() == 2 * 24
    corner = Positions(((5, 3),), image_size=(48, 32))
    assert chosen(layout, corner, pixels).nonzero().tolist() == [[0, 28], [1, 28]]
    mask = torch.zeros(48, 32, dtype=torch.bool)
    mask[-1, -1] = True
    assert chosen(layout, Mask(mask, "pixels"), pixels).nonzero().tolist() == [[0, 28], [1, 28]]
    assert chosen(layout, Mask(torch.ones(6, 4) > 0), pixels).sum().item() == 2 * 24
    with pytest.raises(InterventionError, match="24 patches.*image_size="):
        chosen(layout, ((5, 3),), pixels)


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (lambda: select("CLS"), "'CLS' is no part of a layout; there are all, cls"),
        (lambda: select(3.5), "selects no tokens.*a boolean mask"),
        (lambda: select(()), "selects no tokens"),
        (lambda: Rows((-1,)), "Expected rows >= 0"),
        (lambda: Positions(((0, 0, 0),)), r"Expected \(row, column\) pairs"),
        (lambda: Boxes(((8, 0, 4, 8),)), "left < right"),
        (lambda: Mask(torch.zeros(4, 4)), "boolean tensor.*float32.*Compare with a threshold"),
        (lambda: Shape("star"), "No drawing 'star'; there are heart"),
        (lambda: LargestNorms(0, 1), "n_patches must be >= 1"),
    ],
)
def test_selectors_that_mean_nothing_are_refused(selector, message):
    with as_users_run(), pytest.raises(InterventionError, match=message):
        selector()


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (Rows((17,)), "Row 17 is not in this run.*0 to 16"),
        (Positions(((0, 4),)), r"\(0, 4\) is outside the grid of 4 x 4"),
        (Mask(torch.ones(3, 4) > 0), "3 x 4 patches does not fit images of 16 patches.*4 x 4"),
        (Mask(torch.ones(2, 8) > 0), "2 x 8 patches does not fit"),
        (Mask(torch.ones(16, 16) > 0, "pixels"), "16 patches.*have 4, 2 x 2"),
        (RandomPatches(17, 0), "17 random patches of the 16"),
        (LargestNorms(17, 0), "these images have 16 patches only"),
        (Outliers(1.0, layer=3), "Layer 3 is not in .* layers 0 to 2"),
    ],
)
def test_selectors_that_do_not_fit_say_what_does(selector, message):
    layout = (
        "timm with [CLS]"
        if "16 x 16" not in selector.describe()
        else "timm with 4 trained registers"
    )
    with pytest.raises(InterventionError, match=message):
        chosen(layout, selector)
