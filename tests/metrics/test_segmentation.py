"""Segmentation scores: equal to torchmetrics and scikit-learn, exact when streamed, by image."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from ttreg_interp.errors import DataError
from ttreg_interp.metrics.intervals import statistic_interval
from ttreg_interp.metrics.segmentation import (
    MapScores,
    average_precision,
    mean_miou,
    overlap,
    score_maps,
)

from .laws import law, seeds

CLASSES, IGNORE = 5, 255


def labels(seed: int, images: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Prediction and target of 7 x 4 pixels; class 4 occurs in neither, some pixels are ignored."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 4, (images, 7, 4), generator=generator)
    prediction = torch.where(
        torch.rand(target.shape, generator=generator) < 0.6,
        target,
        torch.randint(0, 4, target.shape, generator=generator),
    )
    target[torch.rand(target.shape, generator=generator) < 0.2] = IGNORE
    return prediction, target


@law
@given(seeds)
def test_miou_and_pixel_accuracy_are_those_of_torchmetrics(seed):
    prediction, target = labels(seed)
    counts = overlap(prediction, target, CLASSES, IGNORE)
    per_class = multiclass_jaccard_index(
        prediction, target, CLASSES, average="none", ignore_index=IGNORE
    )
    accuracy = multiclass_accuracy(
        prediction, target, CLASSES, average="micro", ignore_index=IGNORE
    )
    torch.testing.assert_close(counts.iou[:4].float(), per_class[:4])
    assert counts.iou[4].isnan()
    assert counts.miou().estimate == pytest.approx(per_class[:4].mean().item(), abs=1e-6)
    assert counts.pixel_accuracy().estimate == pytest.approx(accuracy.item(), abs=1e-6)


@law
@given(seeds, st.integers(1, 5))
def test_batches_and_shards_add_up_to_the_whole(seed, cut):
    prediction, target = labels(seed)
    whole = overlap(prediction, target, CLASSES)
    parts = overlap(prediction[:cut], target[:cut], CLASSES)
    parts = parts + overlap(prediction[cut:], target[cut:], CLASSES)
    for name in ("intersection", "predicted", "labelled"):
        assert torch.equal(getattr(parts, name), getattr(whole, name))


def test_ignored_pixels_count_nowhere():
    prediction, target = labels(0)
    other = prediction.where(target != IGNORE, 3)
    counts = [overlap(p, target, CLASSES) for p in (prediction, other)]
    assert torch.equal(counts[0].predicted, counts[1].predicted)
    assert counts[0].labelled.sum() == (target != IGNORE).sum()


def test_the_interval_of_miou_is_over_images_drawn_with_replacement():
    """Counted by how often an image is drawn; here each drawn image is added up by itself."""
    counts = overlap(*labels(0), CLASSES)
    inter, predicted, labelled = (part.double().numpy() for part in vars(counts).values())

    def drawn_one_by_one(drawn, axis):
        total = [part[drawn.astype(int)].sum(-2)[..., :4] for part in (inter, predicted, labelled)]
        return (total[0] / (total[1] + total[2] - total[0])).mean(-1)

    expected = statistic_interval(drawn_one_by_one, [np.arange(6)])
    interval = counts.miou()
    for end in ("estimate", "low", "high"):
        assert getattr(interval, end) == pytest.approx(getattr(expected, end))


def test_the_interval_of_miou_holds_the_scores_of_other_samples_of_images():
    interval = overlap(*labels(0, images=60), CLASSES).miou()
    others = [overlap(*labels(seed, images=60), CLASSES).miou().estimate for seed in range(1, 21)]
    assert np.mean([other in interval for other in others]) > 0.7
    assert interval.high - interval.low < 0.1


def test_perfect_segmentation_has_no_spread():
    _, target = labels(0)
    target[target == IGNORE] = 0
    interval = overlap(target, target, CLASSES).miou()
    assert (interval.low, interval.estimate, interval.high) == (1.0, 1.0, 1.0)
    assert interval.method.startswith("percentile")


def test_runs_of_one_probe_are_averaged_over_the_same_images():
    runs = tuple(overlap(*labels(seed), CLASSES) for seed in range(3))
    expected = np.mean([run.miou().estimate for run in runs])
    assert mean_miou(runs).estimate == pytest.approx(expected)
    assert mean_miou((runs[0],)) == runs[0].miou()


scores = st.lists(st.integers(0, 6).map(lambda tenth: tenth / 10), min_size=2, max_size=30)


@law
@given(scores, seeds)
def test_average_precision_is_that_of_scikit_learn_ties_included(scores, seed):
    generator = torch.Generator().manual_seed(seed)
    positive = torch.rand(len(scores), generator=generator) < 0.4
    positive[0] = True
    expected = average_precision_score(positive, scores)
    assert average_precision(torch.tensor(scores), positive).item() == pytest.approx(expected)


def maps_and_masks(seed: int, images: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(images, 30, 20, dtype=torch.int64)
    masks[:, 5:17, 8:16] = 1
    patches = torch.nn.functional.avg_pool2d(masks[:, None].double(), 5)[:, 0]
    maps = patches + torch.rand(patches.shape, generator=generator, dtype=torch.float64)
    masks[:, :2] = -1
    return maps, masks


def protocol_of_one_image(map_, mask):
    """Chefer et al.: enlarge, to [0, 1], above the mean is foreground, both classes ranked as one."""
    size = mask.shape
    map_ = torch.nn.functional.interpolate(map_[None, None], size, mode="bilinear")[0, 0].numpy()
    map_ = ((map_ - map_.min()) / (map_.max() - map_.min())).astype(np.float32)
    keep = (mask != -1).numpy()
    truth = mask.numpy()[keep]
    predicted = (map_ > map_.mean(dtype=np.float64))[keep].astype(int)
    both = np.stack([1 - map_, map_])[:, keep]
    precision = average_precision_score(np.stack([truth == 0, truth == 1]).ravel(), both.ravel())
    inter = np.array([((predicted == c) & (truth == c)).sum() for c in (0, 1)])
    union = np.array([((predicted == c) | (truth == c)).sum() for c in (0, 1)])
    return inter, union, (predicted == truth).sum(), truth.size, precision


@law
@given(seeds)
def test_maps_are_scored_by_the_protocol(seed):
    maps, masks = maps_and_masks(seed)
    each = [protocol_of_one_image(*pair) for pair in zip(maps, masks, strict=True)]
    inter, union, correct, pixels, precision = (np.stack(part) for part in zip(*each, strict=True))
    result = score_maps(maps, masks)
    assert result.miou().estimate == pytest.approx((inter.sum(0) / union.sum(0)).mean())
    assert result.pixel_accuracy().estimate == pytest.approx(correct.sum() / pixels.sum())
    np.testing.assert_allclose(result.average_precision, precision, rtol=1e-6)
    assert result.mean_average_precision().estimate == pytest.approx(precision.mean(), rel=1e-6)


def test_scores_of_maps_add_up_and_do_not_depend_on_the_batch():
    maps, masks = maps_and_masks(0)
    whole = score_maps(maps, masks)
    each = [score_maps(maps[i : i + 1], masks[i : i + 1]) for i in range(len(maps))]
    joined = sum(each[1:], start=each[0])
    assert isinstance(joined, MapScores)
    assert joined.miou() == whole.miou()
    torch.testing.assert_close(joined.average_precision, whole.average_precision)


@law
@given(seeds, st.floats(0.1, 10), st.floats(-5, 5))
def test_the_unit_of_a_map_does_not_matter(seed, scale, offset):
    maps, masks = maps_and_masks(seed)
    scores, moved = score_maps(maps, masks), score_maps(scale * maps + offset, masks)
    torch.testing.assert_close(moved.overlap.iou, scores.overlap.iou, atol=2e-3, rtol=0)
    torch.testing.assert_close(moved.average_precision, scores.average_precision, atol=1e-4, rtol=0)


def test_a_constant_map_finds_no_foreground():
    _, masks = maps_and_masks(0)
    result = score_maps(torch.full((5, 6, 4), 0.3), masks)
    assert result.overlap.iou[1] == 0
    assert result.overlap.predicted[:, 1].sum() == 0


def test_one_outlier_patch_spoils_a_map():
    """The artefact that registers remove: one patch takes the attention, the mean rises above the rest."""
    maps, masks = maps_and_masks(0)
    spoiled = maps.clone()
    spoiled[:, 0, 0] = 100.0
    assert score_maps(spoiled, masks).overlap.iou[1] < 0.5 * score_maps(maps, masks).overlap.iou[1]


PREDICTION, TARGET = labels(0)
MAPS, MASKS = maps_and_masks(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: overlap(PREDICTION + 3, TARGET, CLASSES), "prediction holds class 6; the classes"),
        (lambda: overlap(PREDICTION, TARGET, CLASSES, ignore=-1), "target holds class 255; the"),
        (lambda: mean_miou(()), r"found runs of \[\] images"),
        (
            lambda: mean_miou(
                (
                    overlap(PREDICTION, TARGET, CLASSES),
                    overlap(PREDICTION[:2], TARGET[:2], CLASSES),
                )
            ),
            r"found runs of \[2, 6\] images",
        ),
        (lambda: overlap(PREDICTION[:1], TARGET[:1], CLASSES).miou(), "at least 2 needed"),
        (lambda: score_maps(MAPS / 0, MASKS), "maps of shape .* NaN or infinite"),
        (lambda: score_maps(MAPS, MASKS * 0 - 1), "mask of image 0 has only ignored pixels"),
        (lambda: score_maps(MAPS, MASKS + 5), "target holds class"),
        (
            lambda: average_precision(torch.rand(3), torch.zeros(3).bool()),
            "Found no positive among 3",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
