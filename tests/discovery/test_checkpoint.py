"""A stopped run goes on, and shards add up, to the same file as a run in one piece."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from tests.discovery.models import Push, hooked, marked_vit, noise_images
from ttreg_interp.discovery import (
    FindConfig,
    Shard,
    find_register_neurons,
    merge,
    score_shard,
    scores,
    scoring,
)
from ttreg_interp.discovery.checkpoint import RunState
from ttreg_interp.errors import ArtifactError

CONFIG = FindConfig(batch_size=4, survey_images=8, evidence=False)
N_IMAGES = 40


@pytest.fixture(scope="module")
def model():
    return hooked(marked_vit(Push(2, 7, (0, 5)), Push(1, 3, (9,), mark=1, along=1)))


@pytest.fixture(scope="module")
def images():
    return noise_images(N_IMAGES)


@pytest.fixture(scope="module")
def undisturbed(model, images, tmp_path_factory):
    path = tmp_path_factory.mktemp("one") / "neurons.json"
    return find_register_neurons(model, images, CONFIG).save(path).read_bytes()


class Killed(Exception):
    """Stands for a process that is killed."""


class DyingImages:
    """Images that kill their reader at a batch of the scoring pass."""

    def __init__(self, images: torch.Tensor, at: int):
        self.images, self.at, self.passes = images, at, 0

    def batches(self, preprocess, batch_size, workers):
        self.passes += 1
        for number, pixels in enumerate(self.images.split(batch_size)):
            if self.passes == 2 and number == self.at:  # pass 1 is the survey
                raise Killed
            yield (pixels,)

    def digest(self):
        return "the same images"


@pytest.mark.parametrize("at", [0, 1, 5, 9])
def test_a_killed_run_resumed_gives_the_identical_file(model, images, tmp_path, monkeypatch, at):
    monkeypatch.setattr(scoring, "GROUP", 2)
    monkeypatch.setattr(scores, "GROUP", 2)
    monkeypatch.setattr(scoring, "GROUPS_BETWEEN_SAVES", 1)
    monkeypatch.setattr(model, "preprocess", lambda image: image)
    file = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        find_register_neurons(model, DyingImages(images, at), CONFIG, checkpoint=file)
    assert file.exists() == (at >= 2)
    whole = DyingImages(images, at=-1)
    resumed = find_register_neurons(model, whole, CONFIG, checkpoint=file)
    straight = find_register_neurons(model, whole, CONFIG)
    paths = [
        found.save(tmp_path / f"{name}.json")
        for name, found in (("resumed", resumed), ("straight", straight))
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_finished_checkpoint_is_not_scored_again(
    model, images, tmp_path, monkeypatch, undisturbed
):
    file = tmp_path / "run.safetensors"
    find_register_neurons(model, images, CONFIG, checkpoint=file)
    monkeypatch.setattr(scoring, "add_group", None)
    again = find_register_neurons(model, images, CONFIG, checkpoint=file)
    assert again.save(tmp_path / "again.json").read_bytes() == undisturbed


@pytest.mark.parametrize("n_shards", [1, 2, 3])
def test_merged_shards_give_the_identical_file(model, images, tmp_path, n_shards, undisturbed):
    parts = [
        score_shard(model, images, CONFIG, shard=Shard(i, n_shards), checkpoint=tmp_path / f"{i}")
        for i in range(n_shards)
    ]
    merged = merge(parts[::-1], tmp_path / "merged")
    found = find_register_neurons(model, images, CONFIG, checkpoint=merged)
    assert found.save(tmp_path / "neurons.json").read_bytes() == undisturbed


def test_a_checkpoint_of_another_run_is_refused_by_what_differs(model, images, tmp_path):
    file = tmp_path / "run.safetensors"
    find_register_neurons(model, images, CONFIG, checkpoint=file)
    with pytest.raises(ArtifactError, match="seed: 0 there, 1 here.*Remove it to start anew"):
        find_register_neurons(model, images, replace(CONFIG, seed=1), checkpoint=file)
    with pytest.raises(ArtifactError, match="images: '"):
        find_register_neurons(model, images + 1, CONFIG, checkpoint=file)
    other = hooked(marked_vit(Push(2, 8, (0, 5))))
    with pytest.raises(ArtifactError, match="weights: '"):
        find_register_neurons(other, images, CONFIG, checkpoint=file)


def test_choices_that_the_sums_do_not_depend_on_may_change(model, images, tmp_path):
    file = tmp_path / "run.safetensors"
    find_register_neurons(model, images, CONFIG, checkpoint=file)
    again = replace(CONFIG, score="abs", top_k=2, suppress_to=0.5)
    assert len(find_register_neurons(model, images, again, checkpoint=file)) == 2


def test_shards_that_do_not_fit_are_refused(model, images, tmp_path):
    parts = [
        score_shard(model, images, CONFIG, shard=Shard(i, 3), checkpoint=tmp_path / f"{i}")
        for i in range(2)
    ]
    with pytest.raises(ArtifactError, match=r"Found shards \[0, 1\] of 3; a merge needs each"):
        merge(parts, tmp_path / "merged")
    with pytest.raises(ArtifactError, match=r"Found shards \[0, 0, 1\] of 3"):
        merge([parts[0], *parts], tmp_path / "merged")
    with pytest.raises(ArtifactError, match="holds shard 0 of 3, not 2 of 3"):
        score_shard(model, images, CONFIG, shard=Shard(2, 3), checkpoint=parts[0])
    unfinished = RunState.load(parts[1])
    unfinished.complete = False
    unfinished.save(parts[1])
    third = score_shard(model, images, CONFIG, shard=Shard(2, 3), checkpoint=tmp_path / "2")
    with pytest.raises(ArtifactError, match=r"Shards \[1\] are not through"):
        merge([*parts, third], tmp_path / "merged")
    with pytest.raises(ArtifactError, match="Nothing to merge"):
        merge([], tmp_path / "merged")
    with pytest.raises(ArtifactError, match="Shard 3 of 3: numbers run from 0"):
        Shard(3, 3)


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    text = tmp_path / "text"
    text.write_text("not a checkpoint")
    with pytest.raises(ArtifactError, match="is no checkpoint of a search"):
        RunState.load(text)
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(ArtifactError, match="has schema None"):
        RunState.load(tmp_path / "foreign")


def test_saving_leaves_no_other_file_behind(model, images, tmp_path):
    score_shard(model, images, CONFIG, shard=Shard(), checkpoint=tmp_path / "sub" / "run")
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["run"]
