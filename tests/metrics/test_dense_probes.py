"""Dense probes: they read out what patches hold linearly, and nothing else."""

import math

import pytest
import torch

from ttreg_interp.errors import DataError
from ttreg_interp.metrics.dense_probes import (
    DenseProbe,
    DepthHead,
    LabelledPatches,
    depth_probe,
    segmentation_probe,
)

FAST = DenseProbe(learning_rate=0.1, epochs=6, batch_size=4, seeds=(0, 1))
SHORT = DepthHead(bins=32, min_depth=0.5, max_depth=4.0)


def segments(seed: int, images: int = 12) -> LabelledPatches:
    """A 4 x 6 grid of three classes told by one direction each, at 2 pixels a patch."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 3, (images, 4, 6), generator=generator)
    features = 0.1 * torch.randn(images, 4, 6, 5, generator=generator)
    features[..., :3] += torch.nn.functional.one_hot(classes, 3)
    target = classes.repeat_interleave(2, 1).repeat_interleave(2, 2)
    target[:, 0] = 255
    return LabelledPatches(features, target)


def depths(seed: int, images: int = 12) -> LabelledPatches:
    """Smooth depth of 1 to 3 metres, which one direction of the features holds."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 1 + 2 * torch.rand(images, 1, 2, 3, generator=generator)
    patches, pixels = (
        torch.nn.functional.interpolate(coarse, size, mode="bilinear")[:, 0]
        for size in ((4, 6), (8, 12))
    )
    features = 0.05 * torch.randn(images, 4, 6, 5, generator=generator)
    features[..., 0] += patches
    pixels[:, 0] = 0.0  # no measurement
    return LabelledPatches(features, pixels)


def shuffled(data: LabelledPatches) -> LabelledPatches:
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(data.target), generator=generator)
    return LabelledPatches(data.features, data.target[order])


def test_classes_that_patches_hold_linearly_are_read_out():
    result = segmentation_probe(segments(0), segments(1), 3, FAST)
    assert result.miou.estimate > 0.8
    chance = segmentation_probe(shuffled(segments(0)), segments(1), 3, FAST)
    assert chance.miou.estimate < 0.4


def test_each_seed_has_its_overlaps_of_all_test_images():
    result = segmentation_probe(segments(0), segments(1), 3, FAST)
    assert [len(run.labelled) for run in result.overlaps] == [12, 12]
    assert result.miou.estimate == pytest.approx(sum(result.per_seed) / 2)
    assert result.miou.n == 12
    again = segmentation_probe(segments(0), segments(1), 3, FAST)
    assert again.per_seed == result.per_seed


def test_ignored_pixels_teach_nothing():
    train = segments(0)
    plain = segmentation_probe(train, segments(1), 3, FAST)
    target = train.target.clone()
    target[target == 255] = -100
    other = LabelledPatches(train.features, target)
    test = LabelledPatches(
        segments(1).features, segments(1).target.where(segments(1).target < 3, -100)
    )
    assert segmentation_probe(other, test, 3, FAST, ignore=-100).per_seed == plain.per_seed


@pytest.mark.parametrize("head", [SHORT, DepthHead("regression", min_depth=0.5, max_depth=4.0)])
def test_depth_that_patches_hold_linearly_is_read_out(head):
    test = depths(1)
    spread = test.target[:, 1:].std().item()
    result = depth_probe(depths(0), test, head, FAST)
    assert result.rmse.estimate < 0.6 * spread
    assert depth_probe(shuffled(depths(0)), test, head, FAST).rmse.estimate > 0.9 * spread
    assert result.rmse_per_image.shape == (2, 12)
    assert result.rmse.estimate == pytest.approx(sum(result.per_seed) / 2)


def test_the_error_is_the_root_mean_square_over_pixels_in_range():
    """A head that learns nothing tells one depth everywhere, so its error can be worked out."""
    data = depths(0)
    lazy = DenseProbe(learning_rate=0.0, epochs=1, seeds=(0,))
    features = LabelledPatches(torch.zeros(12, 4, 6, 5), data.target)
    result = depth_probe(features, features, SHORT, lazy)
    told = torch.linspace(0.5, 4.0, 32).mean()
    expected = (data.target[:, 1:] - told).square().mean(dim=(1, 2)).sqrt()
    torch.testing.assert_close(result.rmse_per_image[0].float(), expected)


def test_bins_span_the_range_and_are_weighted_as_in_dinov2():
    head = DepthHead(bins=3, min_depth=1.0, max_depth=3.0)
    output = torch.tensor([-5.0, -5.0, 0.7]).view(1, 3, 1, 1)
    expected = (0.1 * 1 + 0.1 * 2 + 0.8 * 3) / 1.0
    assert head.depth(output).item() == pytest.approx(expected)
    assert (head.outputs, DepthHead().outputs, DepthHead("regression").outputs) == (3, 256, 1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_dense_probe_can_be_fitted_where_models_are_run(mode):
    expected = segmentation_probe(segments(0), segments(1), 3, FAST)
    with mode():
        data = [LabelledPatches(d.features.half(), d.target) for d in (segments(0), segments(1))]
        result = segmentation_probe(*data, 3, FAST)
    assert result.miou.estimate == pytest.approx(expected.miou.estimate, abs=0.02)


def far_away(data: LabelledPatches) -> LabelledPatches:
    return LabelledPatches(data.features, 100 * data.target)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DenseProbe(epochs=0), "1 seed or more; found 0, 16"),
        (lambda: DenseProbe(seeds=()), r"found 10, 16 and \(\)"),
        (
            lambda: LabelledPatches(segments(0).features, segments(0).target[:3]),
            "features of 12 images and targets of 3",
        ),
        (
            lambda: LabelledPatches(segments(0).features * math.nan, segments(0).target),
            "features of shape .* NaN",
        ),
        (
            lambda: segmentation_probe(segments(0), segments(1), 2, FAST),
            "training target holds class 2; the classes are 0 .. 1",
        ),
        (
            lambda: depth_probe(depths(0), far_away(depths(1)), SHORT, FAST),
            r"No pixel of test image 0 holds a depth in \(0.5, 4.0\] m",
        ),
        (
            lambda: depth_probe(far_away(depths(0)), depths(1), SHORT, FAST),
            "No pixel of training image 0",
        ),
    ],
)
def test_a_dense_probe_that_cannot_be_fitted_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
