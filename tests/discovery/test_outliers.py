"""find_outliers: where, how many, how strong, since which layer, and what places them."""

import json

import pytest
import torch

from tests.discovery.models import Push, erase, hooked, marked_vit, noise_images
from ttreg_interp.discovery import FindConfig, find_outliers
from ttreg_interp.discovery.priors import neighbour_similarity
from ttreg_interp.discovery.stream import ImageStream
from ttreg_interp.discovery.survey import survey_norms
from ttreg_interp.errors import ContractError, DataError, LayoutError

PUSH = Push(layer=2, neuron=7, places=(0, 5))


@pytest.fixture(scope="module")
def marked():
    return hooked(marked_vit(PUSH))


def test_counts_and_layers_of_planted_outliers(marked):
    report = find_outliers(marked, noise_images(10))
    assert (report.n_images, report.images_with_outliers) == (10, 10)
    assert report.outliers_per_image == 2
    assert (report.emerges_at, report.detect_layer, report.steps) == (2, 2, (2,))
    assert report.separation > 5


def test_the_rows_are_the_norms_of_the_residual_stream(marked):
    images = noise_images(10)
    report = find_outliers(marked, images, FindConfig(batch_size=4))
    _, cache = marked.run_with_cache(images)
    for row in report.layers:
        for name, stage in (("resid_mid", "attention"), ("resid_post", "mlp")):
            norms = cache[name, row.layer][:, 1:].norm(dim=-1)
            median, largest = norms.median(dim=1).values, norms.amax(dim=1)
            expected = [median.mean(), largest.mean(), (largest / median).mean()]
            found = [getattr(row, f"{what}_after_{stage}") for what in ("median", "max", "ratio")]
            assert found == pytest.approx([float(value) for value in expected], rel=1e-5)


def test_outliers_are_what_exceeds_a_given_threshold_at_a_given_layer(marked):
    images = noise_images(10)
    config = FindConfig(threshold="absolute", threshold_value=14.5, detect_layer=-3)
    report = find_outliers(marked, images, config)
    _, cache = marked.run_with_cache(images)
    above = cache["resid_post", 1][:, 1:].norm(dim=-1) > 14.5
    assert report.outliers_per_image == pytest.approx(float(above.sum(dim=1).double().mean()))
    assert report.images_with_outliers == int(above.any(dim=1).sum())


def test_the_last_block_may_hide_the_outliers():
    vit = erase(marked_vit(PUSH, depth=5), layer=4, along=0, size=160)
    report = find_outliers(hooked(vit), noise_images())
    assert report.layers[4].ratio_after_mlp < report.layers[3].ratio_after_mlp / 2
    assert (report.emerges_at, report.detect_layer) == (2, 2)


def test_outliers_that_arise_in_two_steps_are_detected_after_the_second():
    """The first step is a small one on the same patches, or makes other patches outliers."""
    same = marked_vit(Push(1, 3, PUSH.places, size=30), Push(3, 7, PUSH.places, size=200), depth=5)
    report = find_outliers(hooked(same), noise_images())
    assert (report.steps, report.emerges_at, report.detect_layer) == ((1, 3), 3, 3)
    others = marked_vit(Push(1, 3, (0, 5), 0), Push(3, 7, (9, 12), mark=1, along=1), depth=5)
    report = find_outliers(hooked(others), noise_images())
    assert (report.emerges_at, report.detect_layer, report.outliers_per_image) == (1, 3, 4)


def test_a_model_without_outliers_says_so_with_numbers():
    report = find_outliers(hooked(marked_vit()), noise_images())
    assert (report.has_outliers, report.threshold, report.emerges_at) == (False, None, None)
    assert report.steps == ()
    assert "No outliers: in 16 images no token stands out" in str(report)
    assert f"{report.layers[3].ratio_after_mlp:.2f} x" in str(report)


def test_cls_is_a_candidate_only_if_asked_for_and_reported_anyway():
    vit = marked_vit(PUSH)
    with torch.no_grad():
        vit.cls_token[..., 14] = 150
    counts = {}
    for candidates in ("patches", "all"):
        report = find_outliers(hooked(vit), noise_images(), FindConfig(candidates=candidates))
        assert report.priors.cls_outliers == 16
        counts[candidates] = report.images_with_outliers
    assert counts == {"patches": 16, "all": 16}


def test_outliers_at_fixed_positions_are_told_from_outliers_on_smooth_patches(marked):
    fixed = find_outliers(marked, noise_images(12)).priors
    assert fixed.position_repeat == 1
    assert fixed.kind == "fixed positions"
    assert fixed.position_chance == pytest.approx(2 / 16)
    assert fixed.content_auc == pytest.approx(0.5, abs=0.15)


def test_planted_outliers_sit_on_patches_like_their_neighbours(planted, photographs_112):
    priors = find_outliers(planted, photographs_112).priors
    assert priors.neighbour_similarity > priors.neighbour_similarity_others
    assert priors.content_auc > 0.6
    assert priors.position_repeat < 0.5


def test_neighbour_similarity_is_the_mean_cosine_to_the_neighbours_there_are():
    grid = torch.randn(2, 3, 4, 8)
    found = neighbour_similarity(grid)
    for row, column in ((0, 0), (1, 2), (2, 1)):
        beside = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        inside = [(r, c) for r, c in beside if 0 <= r < 3 and 0 <= c < 4]
        cosines = [
            torch.cosine_similarity(grid[:, row, column], grid[:, r, c], dim=-1) for r, c in inside
        ]
        torch.testing.assert_close(found[:, row, column], torch.stack(cosines).mean(dim=0))


def test_a_picture_of_the_norms_is_drawn(marked, tmp_path):
    find_outliers(marked, noise_images()).plot(tmp_path / "norms.png")
    assert (tmp_path / "norms.png").stat().st_size > 5000


def test_the_report_is_json(marked):
    report = find_outliers(marked, noise_images())
    body = json.loads(json.dumps(report.to_dict()))
    assert body["priors"]["kind"] == report.priors.kind
    assert len(body["layers"]) == 4


@pytest.mark.parametrize("broken", ["attn.proj", "mlp.fc2"])
def test_nan_stops_the_run_and_names_the_layer(broken):
    vit = marked_vit(PUSH)
    model = hooked(vit)
    with torch.no_grad():
        vit.blocks[1].get_submodule(broken).bias[3] = float("nan")
    site = "hook_resid_mid" if broken == "attn.proj" else "hook_resid_post"
    with pytest.raises(ContractError, match=f"NaN or inf in .* at blocks.1.{site}"):
        find_outliers(model, noise_images())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no images"),
        (iter([noise_images()]), "read more than once.*tt.images"),
        ([noise_images()[0]], r"\[batch, channel, height, width\]; found \(3, 64, 64\)"),
        (["a.png"], "found str"),
        ([noise_images(2), noise_images(2, size=(32, 32))], "have one size"),
    ],
)
def test_images_that_cannot_be_used_are_refused(marked, images, message):
    with pytest.raises(DataError, match=message):
        find_outliers(marked, images)


def test_image_files_need_a_model_that_preprocesses_them(marked, tmp_path, monkeypatch):
    from ttreg_interp.data.images import images

    monkeypatch.setattr(marked, "preprocess", None)
    (tmp_path / "a.png").write_bytes(b"never read")
    with pytest.raises(DataError, match="does not know how its images are preprocessed"):
        find_outliers(marked, images(tmp_path))


def test_a_layer_that_the_model_lacks_is_refused(marked):
    with pytest.raises(LayoutError, match="detect_layer=4.*layers 0 to 3"):
        find_outliers(marked, noise_images(), FindConfig(detect_layer=4))


def test_however_the_images_come_the_survey_is_the_same(marked):
    images = noise_images(12)
    loader = [(images[:4], torch.zeros(4)), (images[4:8], torch.zeros(4)), (images[8:], None)]
    surveys = [
        survey_norms(marked, ImageStream.for_model(marked, given, 4, 0))
        for given in (images, list(images.split(4)), loader)
    ]
    for survey in surveys[1:]:
        assert torch.equal(survey.counts, surveys[0].counts)
        assert torch.equal(survey.mean_max, surveys[0].mean_max)
