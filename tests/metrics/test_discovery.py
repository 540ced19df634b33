"""LOST against a transcription in plain loops, planted objects, ties and degenerate images; corloc."""

from collections import deque

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ttreg_interp.errors import DataError
from ttreg_interp.metrics.discovery import Lost, corloc, correctly_localised, lost

from .laws import law, seeds


def lost_in_loops(features, height, width, options):
    """Simeoni et al. 2021, section 3, one patch at a time: seed, seed set, object, box in patches."""
    patches = [[float(value) for value in row] for row in features]
    if options.normalise:
        lengths = [sum(value * value for value in row) ** 0.5 or 1.0 for row in patches]
        patches = [
            [value / length for value in row] for row, length in zip(patches, lengths, strict=True)
        ]
    n = height * width

    def correlation(p, q):
        return sum(x * y for x, y in zip(patches[p], patches[q], strict=True)) + options.bias

    degree = [sum(correlation(p, q) > 0 for q in range(n) if q != p) for p in range(n)]
    ranked = sorted(range(n), key=lambda p: (degree[p], p))
    seed = ranked[0]
    chosen = [p for p in ranked[: options.k] if correlation(seed, p) > 0]
    inside = {q for q in range(n) if sum(correlation(s, q) for s in chosen) > 0} | {seed}
    found, queue = {seed}, deque([seed])
    while queue:
        row, column = divmod(queue.popleft(), width)
        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            q = r * width + c
            if 0 <= r < height and 0 <= c < width and q in inside and q not in found:
                found.add(q)
                queue.append(q)
    rows, columns = [p // width for p in found], [p % width for p in found]
    box = [min(columns), min(rows), max(columns) + 1, max(rows) + 1]
    return seed, set(chosen), found, box


def indices(mask: torch.Tensor) -> set[int]:
    return set(mask.flatten().nonzero()[:, 0].tolist())


# biases that no sum of cosines of small integer vectors can equal, so that rounding decides nothing
options = st.builds(
    Lost,
    k=st.integers(1, 12),
    bias=st.sampled_from([0.0, -0.37, -1.13, 0.29]),
    normalise=st.booleans(),
)


@settings(law, max_examples=200)
@given(st.data(), st.integers(1, 5), st.integers(1, 6), options)
def test_lost_is_its_definition(data, height, width, options):
    entry = st.integers(-3, 3)
    patch = st.lists(entry, min_size=3, max_size=3)
    patches = data.draw(st.lists(patch, min_size=height * width, max_size=height * width))
    if options.normalise and options.bias == 0:
        # without bias sums of cosines of integer vectors do hit 0; jitter keeps them off it
        patches = [
            [x + (i * 7 + j + 1) * 1e-3 for j, x in enumerate(p)] for i, p in enumerate(patches)
        ]
    features = torch.tensor(patches, dtype=torch.float64).view(height, width, 3)
    seed, seed_set, found, box = lost_in_loops(patches, height, width, options)
    result = lost(features, patch_size=1, options=options)
    assert result.seed == divmod(seed, width)
    assert indices(result.seed_set) == seed_set
    assert indices(result.mask) == found
    assert result.box.tolist() == box


def planted(height=6, width=9, top=2, left=5, rows=3, columns=2) -> torch.Tensor:
    """A rectangle of patches on a background that is of one kind and against it."""
    features = torch.tensor([1.0, -0.2]).repeat(height, width, 1)
    features[top : top + rows, left : left + columns] = torch.tensor([-0.2, 1.0])
    return features


@pytest.mark.parametrize("patch_size", [8, 14, 16])
def test_a_planted_object_is_boxed_on_a_grid_that_is_not_square(patch_size):
    result = lost(planted(), patch_size)
    assert result.box.tolist() == [5 * patch_size, 2 * patch_size, 7 * patch_size, 5 * patch_size]
    assert result.seed == (2, 5)
    assert result.mask.sum() == 6


@law
@given(seeds)
def test_a_mirrored_image_has_the_mirrored_object(seed):
    """If only one patch has the lowest degree; ties go by raster order, which a mirror changes."""
    generator = torch.Generator().manual_seed(seed)
    features = planted(rows=1, columns=1) + 0.4 * torch.randn(6, 9, 2, generator=generator)
    there = lost(features, 1, options=Lost(k=1))
    assume(not there.seed_is_arbitrary)
    back = lost(features.flip(1), 1, options=Lost(k=1))
    assert torch.equal(back.mask, there.mask.flip(1))
    x0, y0, x1, y1 = there.box.tolist()
    assert back.box.tolist() == [9 - x1, y0, 9 - x0, y1]


def test_a_second_object_of_the_same_kind_stays_outside_the_box():
    features = planted()
    features[0, 0] = features[2, 5]
    result = lost(features, 1)
    assert result.seed == (0, 0)
    assert result.box.tolist() == [0, 0, 1, 1]
    assert result.seed_set.sum() == 7


def test_patches_that_touch_at_a_corner_are_apart():
    features = planted(rows=1, columns=1)
    features[3, 6] = features[2, 5]
    assert lost(features, 1).box.tolist() == [5, 2, 6, 3]


def test_negative_correlations_count_against_a_patch():
    """Patch 2 goes with the seed (patch 0) a little, and against patch 1 of the seed set a lot."""
    features = torch.tensor(
        [[[1.0, 0.0, 0.0], [1.0, 3.0, 0.0], [0.1, -1.0, 5.0], [-1.0, 2.0, 2.0]]]
    )
    assert indices(lost(features, 1, options=Lost(k=1)).mask) == {0, 1, 2}
    assert indices(lost(features, 1, options=Lost(k=2)).mask) == {0, 1}


def test_where_all_correlations_are_positive_the_box_is_the_image_and_the_seed_arbitrary():
    result = lost(torch.ones(4, 5, 3), patch_size=2)
    assert result.box.tolist() == [0, 0, 10, 8]
    assert (result.seed, result.seed_is_arbitrary) == ((0, 0), True)
    assert (result.degree == 19).all()


@pytest.mark.parametrize(
    ("features", "options"),
    [(torch.ones(4, 5, 3), Lost(bias=-4.0)), (torch.zeros(4, 5, 3), Lost(normalise=True))],
)
def test_where_no_correlation_is_positive_the_object_is_the_first_patch(features, options):
    result = lost(features, 2, options=options)
    assert result.box.tolist() == [0, 0, 2, 2]
    assert not result.seed_set.any()
    assert (result.degree == 0).all()


def test_a_single_patch_is_its_own_object():
    assert lost(torch.ones(1, 1, 3), 16).box.tolist() == [0, 0, 16, 16]


def test_a_bias_separates_what_a_shared_direction_binds():
    """All patches share a large constant, as DINOv2's do: without a bias the box is the image."""
    features = torch.cat([planted(), torch.full((6, 9, 1), 3.0)], dim=2)
    assert lost(features, 1).box.tolist() == [0, 0, 9, 6]
    normalised = Lost(bias=-0.95, normalise=True)
    assert lost(features, 1, options=normalised).box.tolist() == [5, 2, 7, 5]


def test_a_box_in_the_padding_is_clipped_to_the_image():
    features = planted(top=3, left=7)
    assert lost(features, 16, image_size=(90, 140)).box.tolist() == [112, 48, 140, 90]


def test_features_in_half_precision_are_correlated_in_float64():
    features = planted().half()
    assert torch.equal(lost(features, 1).mask, lost(features.double(), 1).mask)


corners = st.lists(st.integers(0, 12), min_size=2, max_size=2, unique=True).map(sorted)
boxes = st.tuples(corners, corners).map(lambda b: [b[0][0], b[1][0], b[0][1], b[1][1]])


def pixels(box):
    x0, y0, x1, y1 = box
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}


@law
@given(boxes, st.lists(boxes, min_size=1, max_size=4))
def test_an_image_is_localised_if_half_the_joint_pixels_are_shared(box, objects):
    shares = [len(pixels(box) & pixels(o)) / len(pixels(box) | pixels(o)) for o in objects]
    found = correctly_localised(torch.tensor([box]).float(), [torch.tensor(objects).float()])
    assert found.tolist() == [max(shares) >= 0.5]


def test_corloc_is_the_share_of_localised_images_with_its_interval():
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    result = corloc(box.expand(8, 4), [box] * 6 + [box + 10] * 2)
    assert result.estimate == 0.75
    assert 0.25 < result.low < 0.75 < result.high <= 1.0
    assert result.n == 8


BOX = torch.tensor([[0.0, 0.0, 4.0, 4.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Lost(k=0), "1 or more; found 0"),
        (lambda: lost(planted() / 0, 16), "features of shape .* NaN or infinite"),
        (lambda: lost(planted()[:0], 16), "features is empty"),
        (
            lambda: lost(planted(), 16, image_size=(97, 144)),
            "97 x 144 pixels is not covered by 6 x 9 patches of 16",
        ),
        (lambda: correctly_localised(BOX, [BOX, BOX]), "1 boxes and annotations of 2 images"),
        (lambda: correctly_localised(BOX, [BOX[:0]]), "ground truth of image 0 is empty"),
        (
            lambda: correctly_localised(BOX, [torch.tensor([[5.0, 5.0, 2.0, 9.0]])]),
            r"ground truth of image 0 has a box without area, \[5.0, 5.0, 2.0, 9.0\]",
        ),
        (lambda: correctly_localised(BOX * 0, [BOX]), "boxes has a box without area"),
        (lambda: corloc(BOX, [BOX]), "at least 2 needed"),
    ],
)
def test_what_cannot_be_localised_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
