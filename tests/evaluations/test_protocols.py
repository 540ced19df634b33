"""Each protocol gives what its definition gives, image by image, under every arm."""

import numpy as np
import pytest
import torch
from PIL import Image

from ttreg_interp.data.annotated import Attack, Depth, Mask, Objects
from ttreg_interp.errors import DataError
from ttreg_interp.evaluations.arms import standard_arms
from ttreg_interp.evaluations.dense import IGNORE, DepthProbe, SegmentationProbe
from ttreg_interp.evaluations.folds import folds, others, over_seeds
from ttreg_interp.evaluations.lost import ObjectDiscovery
from ttreg_interp.evaluations.maps import AttentionSegmentation, id_ranges
from ttreg_interp.evaluations.probes import LinearProbe, NearestNeighbours
from ttreg_interp.evaluations.run import evaluate
from ttreg_interp.evaluations.typographic import TypographicAttack
from ttreg_interp.interventions import (
    AttentionBias,
    Empty,
    ExtraTokens,
    MoveNeurons,
    TestTimeRegister,
)
from ttreg_interp.metrics.classification import Labelled
from ttreg_interp.metrics.dense_probes import DenseProbe
from ttreg_interp.metrics.discovery import Lost, correctly_localised, lost
from ttreg_interp.metrics.probes import LogisticProbe, linear_probe
from ttreg_interp.metrics.segmentation import mean_miou, score_maps

from .small import CLASSES, classifier, images_of

REGISTER = TestTimeRegister({0: range(0, 60)})


@pytest.fixture(scope="module")
def model():
    return classifier()


def squeezed(model, item):
    """The whole image at the model's size, in timm's default colours; apart from the package."""
    image = item.read_image().resize((32, 32), Image.Resampling.BICUBIC)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    return ((torch.from_numpy(np.array(image)) / 255 - mean) / std).permute(2, 0, 1)


# ------------------------------------------------------------------ LOST


def test_lost_tries_every_setting_on_the_patches_alone(model, tmp_path):
    data = images_of(Objects, 6)
    protocol = ObjectDiscovery(last_layers=2, biases=(0.0, -0.3), k=9)
    arms = {"register": REGISTER, "two tokens": ExtraTokens(2)}
    found = evaluate(protocol, model, data, arms, tmp_path)
    pixels = torch.stack([squeezed(model, item) for item in data.items])
    for name, arm in {"intact": Empty(), **arms}.items():
        with torch.no_grad(), model.intervened(arm):
            cache = model.run_with_cache(pixels)[1]
        for side in ("key", "query", "value"):
            for layer in (0, 1):
                rows = cache[f"blocks.{layer}.attn.hook_{side[0]}"]
                patches = rows[:, cache.layout.patches].flatten(2).view(6, 4, 4, 32)
                for bias in (0.0, -0.3):
                    hits = []
                    for item, features in zip(data.items, patches, strict=True):
                        box = lost(features, 8, options=Lost(9, bias, True)).box
                        inside = box * torch.tensor([48 / 32, 40 / 32, 48 / 32, 40 / 32])
                        boxes = item.read_target((40, 48)).boxes
                        hits.append(correctly_localised(inside[None], [boxes])[0])
                    told = found.details[name]["sweep"][f"{side}, layer {layer - 2}, bias {bias:g}"]
                    assert told == pytest.approx(100 * torch.stack(hits).double().mean().item())


def test_the_best_of_the_sweep_is_told_with_its_setting(model, tmp_path):
    found = evaluate(ObjectDiscovery(last_layers=1), model, images_of(Objects, 5), {}, tmp_path)
    details = found.details["intact"]
    best = found["intact", "corloc %, best of 33"].value.estimate
    assert max(details["sweep"].values()) == details["sweep"][details["best"]]
    assert best == pytest.approx(details["sweep"][details["best"]])


def test_a_model_of_any_size_sees_padded_images_and_boxes_where_they_are(tmp_path):
    model = classifier(dynamic_img_size=True)
    data = images_of(Objects, 3, size=(21, 39))
    prepared = ObjectDiscovery().prepare(model, *data.items[0].read())
    assert prepared.pixels.shape == (3, 24, 40)
    assert not prepared.pixels[:, 21:].any() and not prepared.pixels[:, :, 39:].any()
    boxes, size = prepared.target
    assert size == (21, 39) and torch.equal(boxes, data.items[0].read()[1].boxes)
    evaluate(ObjectDiscovery(biases=(0.0,)), model, data, {"register": REGISTER}, tmp_path)
    with pytest.raises(DataError, match="fit='resize', or load it at another image size"):
        ObjectDiscovery(fit="pad").prepare(classifier(), *data.items[0].read())


def test_a_box_of_the_whole_image_is_told_apart_from_a_find(tmp_path):
    """With a bias of 2 every correlation is positive: all boxes are the image, whatever the arm."""
    data = images_of(Objects, 4)
    protocol = ObjectDiscovery(biases=(2.0,), last_layers=1)
    found = evaluate(protocol, classifier(), data, {"register": REGISTER}, tmp_path)
    for arm in ("intact", "register"):
        details = found.details[arm]
        assert set(details["box is the whole image, % of images"].values()) == {100.0}
        trivial = found[arm, "corloc %, whole image"].value.estimate
        assert list(details["sweep"].values()) == pytest.approx([trivial] * 3)


# ------------------------------------------------------------------ attention


def bias_of(model):
    cfg = model.cfg
    k, v = torch.randn(2, cfg.n_layers, cfg.n_heads, cfg.d_head)
    return AttentionBias(k, v)


def test_attention_maps_are_the_cls_row_of_the_patches(model, tmp_path):
    data = images_of(Mask, 5)
    arms = {"register": REGISTER, "bias": bias_of(model)}
    found = evaluate(AttentionSegmentation(foreground="1,2"), model, data, arms, tmp_path)
    pixels = torch.stack([squeezed(model, item) for item in data.items])
    sized = torch.stack(
        [AttentionSegmentation().prepare(model, *item.read()).target for item in data.items]
    )
    for name, arm in {"intact": Empty(), **arms}.items():
        with torch.no_grad(), model.intervened(arm):
            cache = model.run_with_cache(pixels)[1]
        maps = cache["pattern", 1][:, :, 0, -16:].mean(dim=1).view(5, 4, 4)
        scores = score_maps(maps, sized)
        assert found[name, "mIoU %"].value.estimate == pytest.approx(
            100 * scores.miou().estimate, abs=1e-3
        )
        assert found[name, "pixel accuracy %"].value.estimate == pytest.approx(
            100 * scores.pixel_accuracy().estimate, abs=1e-3
        )
        assert found[name, "mAP %"].value.estimate == pytest.approx(
            100 * scores.mean_average_precision().estimate, abs=1e-3
        )


def test_images_without_foreground_are_left_out_and_counted(model, tmp_path):
    data = images_of(Mask, 6)  # odd images have class 2, even ones class 1
    found = evaluate(AttentionSegmentation(foreground="2"), model, data, {}, tmp_path)
    assert found["intact", "mAP %"].value.n == 3
    assert found.details["intact"] == {"images without both foreground and background": 3}


@pytest.mark.parametrize("text", ["", "a", "1--2", "-3"])
def test_ranges_that_are_none_are_refused(text):
    with pytest.raises(DataError, match="lists no class ids"):
        id_ranges(text)


# ------------------------------------------------------------------ probes


def test_a_probe_with_training_images_is_that_of_the_metrics(model, tmp_path):
    train, test = images_of(int, 20), images_of(int, 8)
    protocol = LinearProbe(token="mean", grid=(0.1, 0.01), seeds=(0, 1))
    data = {"train": train, "test": test}
    found = evaluate(protocol, model, data, {"register": REGISTER}, tmp_path)
    sets = {}
    for split, images in data.items():
        pixels = torch.stack([model.preprocess(item.read_image()) for item in images.items])
        with torch.no_grad(), model.intervened(REGISTER):
            tokens = model(pixels, return_type="tokens")
        labels = torch.tensor([item.read()[1] for item in images.items])
        sets[split] = Labelled(tokens[:, 1:].mean(dim=1), labels)
    probe = LogisticProbe(grid=(0.1, 0.01), seeds=(0, 1))
    expected = linear_probe(sets["train"], sets["test"], probe)
    assert found["register", "top-1 %"].value.estimate == pytest.approx(
        100 * expected.accuracy.estimate
    )
    assert found.details["register"]["fits"][0]["chosen"] == list(expected.chosen)


@pytest.mark.parametrize(
    ("token", "arm", "row"),
    [("cls", "intact", 0), ("register", "register", 1), ("central", "register", 2 + 10)],
)
def test_a_token_of_the_layout_is_the_one_probed(model, token, arm, row):
    from ttreg_interp.evaluations.features import image_vectors

    pixels = torch.randn(2, 3, 32, 32)
    intervention = {"intact": Empty(), "register": REGISTER}[arm]
    with torch.no_grad(), model.intervened(intervention):
        stream = model(pixels, stop_at_layer=2)
    with torch.no_grad():
        expected = model.source.norm(stream)[:, row]
        found = image_vectors(model, intervention, pixels, token)
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_outlier_token_is_the_patch_of_largest_norm(model):
    from ttreg_interp.evaluations.features import image_vectors

    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        stream = model(pixels, stop_at_layer=2)
        places = 1 + stream[:, 1:].norm(dim=-1).argmax(dim=1)
        expected = model.source.norm(stream)[torch.arange(3), places]
        for token in ("outlier", "register", "trained-register"):  # there is no register to take
            found = image_vectors(model, Empty(), pixels, token)
            assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "protocol", [LinearProbe(folds=3, grid=(0.1,)), NearestNeighbours(folds=3, k=2)]
)
def test_without_training_images_every_image_is_tested_once_by_the_others(
    model, tmp_path, protocol, monkeypatch
):
    fitted = []
    original = type(protocol)._fit
    monkeypatch.setattr(
        type(protocol),
        "_fit",
        lambda self, train, test: fitted.append((train, test)) or original(self, train, test),
    )
    found = evaluate(protocol, model, images_of(int, 10), {}, tmp_path)
    assert found["intact", "top-1 %"].value.n == 10
    assert [len(test) for _, test in fitted] == [4, 3, 3]
    for train, test in fitted:
        rows, tested = (
            {tuple(row) for row in part.features[torch.arange(len(part))].tolist()}
            for part in (train, test)
        )
        assert len(train) + len(test) == 10
        assert not rows & tested


def test_folds_part_the_images():
    parts = folds(11, 4, seed=3)
    assert sorted(torch.cat(parts).tolist()) == list(range(11))
    assert sorted([*parts[0].tolist(), *others(parts[0], 11).tolist()]) == list(range(11))


def test_the_interval_over_seeds_is_that_of_student():
    from scipy import stats

    values = [86.1, 86.4, 86.6]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (over_seeds(values).low, over_seeds(values).high) == pytest.approx((low, high))


# ------------------------------------------------------------------ dense probes


def test_a_segmentation_probe_reads_classes_off_patches(model, tmp_path):
    probe = DenseProbe(learning_rate=0.05, epochs=20, batch_size=4, seeds=(0, 1))
    protocol = SegmentationProbe(probe=probe, foreground="1-")
    data = {"train": images_of(Mask, 8), "test": images_of(Mask, 8)}
    found = evaluate(protocol, model, data, {"register": REGISTER}, tmp_path)
    row = found["register", "mIoU %"]
    assert row.value.n == 8 and row.difference is not None
    per_seed = found.details["register"]["per seed"]
    assert row.value.estimate == pytest.approx(np.mean(per_seed))
    assert row.value.estimate > 45  # one class everywhere gives 31


def test_cross_validation_keeps_the_order_of_the_images(model, tmp_path, monkeypatch):
    """Counts of image i stand at place i, whatever fold it was in."""
    protocol = SegmentationProbe(probe=DenseProbe(epochs=1, seeds=(0,)), folds=3)
    seen = []
    monkeypatch.setattr(
        "ttreg_interp.evaluations.dense.MeanIoU",
        lambda run, scale: seen.append(run) or MeanIoU(run),
    )
    from ttreg_interp.metrics.segmentation import MeanIoU

    data = images_of(Mask, 7)
    evaluate(protocol, model, data, {}, tmp_path)
    for i, item in enumerate(data.items):
        target = protocol.prepare(model, *item.read()).target
        counts = target[target != IGNORE].long().bincount(minlength=3)
        assert torch.equal(seen[0].labelled[i], counts)
    assert mean_miou((seen[0],)).estimate == pytest.approx(seen[0].iou.nanmean().item())


@pytest.mark.parametrize("kind", ["bins", "regression"])
def test_a_depth_probe_tells_metres(model, tmp_path, kind):
    protocol = DepthProbe(probe=DenseProbe(epochs=2, seeds=(0, 1)), folds=2, kind=kind)
    found = evaluate(protocol, model, images_of(Depth, 6), {}, tmp_path)
    assert 0.5 < found["intact", "rmse [m]"].value.estimate < 9
    assert len(found.details["intact"]["per seed"]) == 2


def test_only_the_crop_of_eigen_counts_in_images_of_nyu(model):
    depth = Depth(torch.ones(480, 640))
    kept = DepthProbe()._target(depth, (480, 640)) > 0
    assert kept.sum() == 426 * 560 and kept[45, 41] and not kept[44, 41] and not kept[471, 300]
    assert (DepthProbe(eigen_crop=False)._target(depth, (480, 640)) > 0).all()


# ------------------------------------------------------------------ typographic


def test_an_attack_succeeds_where_the_written_class_scores_above_the_real_one(model, tmp_path):
    data = images_of(Attack, 9)
    names = ["text-move", "text-erase", "text-random"]
    arms = standard_arms(model, {0: range(0, 60)}, names, n_draws=2)
    found = evaluate(TypographicAttack(), model, data, arms, tmp_path, batch_size=4)
    pixels = torch.stack([model.preprocess(item.read_image()) for item in data.items])
    targets = [item.read()[1] for item in data.items]
    real, text = (
        torch.tensor([CLASSES.index(getattr(target, name)) for target in targets])
        for name in ("real", "text")
    )
    patches = torch.stack(
        [TypographicAttack().prepare(model, *i.read()).target[2] for i in data.items]
    )
    move = MoveNeurons({0: range(0, 60)}, to=patches)

    def success(images, arm):
        with torch.no_grad(), model.intervened(arm):
            logits = model(images)
        rows = torch.arange(9)
        return 100 * (logits[rows, text] > logits[rows, real]).double().mean().item()

    filled = pixels.clone()
    for image, area in zip(filled, patches, strict=True):
        inside = area.repeat_interleave(8, 0).repeat_interleave(8, 1)
        image[:, inside] = image[:, inside].mean(dim=1, keepdim=True)
    for name, expected in {
        "intact": success(pixels, Empty()),
        "text-move": success(pixels, move),
        "text-erase": success(filled, Empty()),
    }.items():
        assert found[name, "attack success %"].value.estimate == pytest.approx(expected)


def test_a_text_that_the_preprocessing_crops_away_is_left_out(model, tmp_path):
    from dataclasses import replace

    data = images_of(Attack, 4)
    outside = torch.zeros(40, 200, dtype=torch.bool)
    outside[:3, :3] = True
    from functools import partial

    from .small import photograph

    items = list(data.items)
    items[0] = replace(
        items[0],
        read_image=partial(photograph, 0, size=(40, 200)),
        read_target=lambda size: Attack("ash", "birch", outside),
    )
    found = evaluate(TypographicAttack(), model, replace(data, items=tuple(items)), {}, tmp_path)
    assert found["intact", "attack success %"].value.n == 3
    assert found.details["intact"] == {"images whose text was cropped away": 1}


def test_an_attack_that_nobody_marked_cannot_be_masked(model, tmp_path):
    from dataclasses import replace

    data = images_of(Attack, 2)
    items = tuple(replace(i, read_target=lambda size: Attack("ash", "birch")) for i in data.items)
    arms = standard_arms(model, {0: [3]}, ["text-move"])
    with pytest.raises(DataError, match="Mark it \\(areas/NAME.png, white: text\\)"):
        evaluate(TypographicAttack(), model, replace(data, items=items), arms, tmp_path)
