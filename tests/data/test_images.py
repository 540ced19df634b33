"""Image folders: a fixed order, full batches, and nothing left out in silence."""

import hashlib
import logging
import os
import random
import shutil
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import SIZE, bad_files, bomb, folder_of, plain, to_tensor

from ttreg_interp.data import images
from ttreg_interp.errors import DataError


def reds(batch) -> list[int]:
    return (batch.pixels[:, 0, 0, 0] * 255).round().int().tolist()


class TestCollecting:
    def test_a_folder_is_searched_through_and_sorted_by_path(self, tmp_path):
        for name in ("b.png", "a/z.JPG", "a/y.webp", "c/d/e.Png"):
            plain(tmp_path / name)
        (tmp_path / "a" / "notes.txt").write_text("none")
        folder = images(tmp_path)
        assert folder.names == ("a/y.webp", "a/z.JPG", "b.png", "c/d/e.Png")
        assert folder.root == tmp_path
        assert len(folder) == 4

    def test_a_file_a_list_and_a_list_file_give_the_same_images(self, tmp_path):
        files = [plain(tmp_path / "pictures" / name) for name in ("two.png", "one.png")]
        listed = tmp_path / "list.txt"
        listed.write_text(f"pictures/two.png\n\n  {files[1]}  \n", encoding="utf-8")
        assert images(files).paths == images(listed).paths == tuple(files)
        assert images(listed).names == ("two.png", "one.png")
        assert images(files[0]).paths == (files[0],)
        assert images(str(files[0])).paths == (files[0],)

    def test_limit_takes_the_first(self, tmp_path):
        folder = folder_of(tmp_path, 5)
        assert images(folder, limit=2).names == ("00.png", "01.png")
        assert images(folder, limit=9) == images(folder)

    @given(limit=st.integers(1, 12), seed=st.integers(0, 1000))
    @settings(deadline=None, max_examples=25)
    def test_a_seed_takes_a_subset_in_the_same_order(self, shared_folder, limit, seed):
        whole, part = images(shared_folder), images(shared_folder, limit, seed)
        assert len(part) == min(limit, len(whole))
        assert list(part.paths) == sorted(set(part.paths) & set(whole.paths))
        assert part == images(shared_folder, limit, seed)

    def test_seeds_give_different_subsets(self, shared_folder):
        assert len({images(shared_folder, 5, seed).paths for seed in range(10)}) > 5

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda f: f / "gone", "gone does not exist. Give a folder"),
            (lambda f: f / "empty", "empty holds no image: it is empty. Looked for .avif"),
            (lambda f: f / "texts", "texts holds no image: 2 .txt, 1 no extension"),
            (lambda f: [], "An empty list of images was given"),
            (lambda f: f / "blank.txt", "The list .*blank.txt is empty. Write one image path"),
            (lambda f: f / "binary.txt", "binary.txt cannot be read as UTF-8 text"),
        ],
    )
    def test_a_source_without_images_says_what_was_found(self, tmp_path, make, message):
        (tmp_path / "empty").mkdir()
        for name in ("one.txt", "deep/two.txt", "README"):
            (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "texts" / name).write_text("text")
        (tmp_path / "blank.txt").write_text("\n \n")
        (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DataError, match=message):
            images(make(tmp_path))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"limit": 0}, "limit=0: allowed are 1 and more"),
            ({"seed": 3}, "seed=3 chooses a subset, but no limit says of what size"),
        ],
    )
    def test_limit_and_seed_must_make_sense(self, tmp_path, options, message):
        with pytest.raises(DataError, match=message):
            images(folder_of(tmp_path, 1), **options)

    def test_a_collection_cannot_be_changed(self, tmp_path):
        with pytest.raises(FrozenInstanceError):
            images(folder_of(tmp_path, 1)).paths = ()  # pyright: ignore


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory) -> Path:
    return folder_of(tmp_path_factory.mktemp("shared"), 11)


class TestBatches:
    @pytest.mark.parametrize("batch_size", [1, 4, 11, 20])
    def test_every_image_comes_once_in_order_and_only_the_last_batch_is_short(
        self, shared_folder, batch_size
    ):
        folder = images(shared_folder)
        batches = list(folder.batches(to_tensor, batch_size))
        assert [red for batch in batches for red in reds(batch)] == list(range(11))
        assert [index for batch in batches for index in batch.indices] == list(range(11))
        assert tuple(path for batch in batches for path in batch.paths) == folder.paths
        assert all(len(batch.indices) == batch_size for batch in batches[:-1])
        assert batches[0].pixels.shape[1:] == (3, SIZE, SIZE)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_the_unreadable_are_skipped_reported_and_replaced_by_the_next(
        self, tmp_path, caplog, workers
    ):
        folder_of(tmp_path / "good", 7)
        reasons = bad_files(tmp_path / "bad")
        good, bad = images(tmp_path / "good").paths, images(tmp_path / "bad").paths
        mixed = [*good[:2], *bad, *good[2:]]
        random.Random(0).shuffle(mixed)
        one_pass = images(mixed).batches(to_tensor, batch_size=3, workers=workers)

        with caplog.at_level(logging.WARNING, logger="ttreg_interp"):
            batches = list(one_pass)

        assert [len(batch.indices) for batch in batches] == [3, 3, 1]
        for batch in batches:
            assert batch.paths == tuple(mixed[index] for index in batch.indices)
            assert reds(batch) == [int(path.stem) for path in batch.paths]
        assert [skipped.path for skipped in one_pass.skipped] == [p for p in mixed if p in bad]
        assert len(one_pass.skipped) == len(reasons) == 8
        for skipped in one_pass.skipped:
            assert reasons[skipped.path.name] in skipped.reason
            assert f"skipped {skipped.path}: {skipped.reason}" in caplog.messages
        assert caplog.messages[-1] == "skipped 8 of 15 images"

    def test_a_second_iteration_counts_afresh(self, tmp_path):
        folder_of(tmp_path, 2)
        (tmp_path / "none.png").touch()
        one_pass = images(tmp_path).batches(to_tensor)
        for _ in range(2):
            assert len(list(one_pass)) == 1
            assert len(one_pass.skipped) == 1

    def test_a_clean_pass_logs_nothing(self, shared_folder, caplog):
        list(images(shared_folder).batches(to_tensor))
        assert caplog.messages == []

    def test_workers_change_nothing(self, shared_folder):
        folder = images(shared_folder)
        here = list(folder.batches(to_tensor, 4))
        there = list(folder.batches(to_tensor, 4, workers=2))
        for one, other in zip(here, there, strict=True):
            assert torch.equal(one.pixels, other.pixels)
            assert (one.paths, one.indices) == (other.paths, other.indices)

    def test_a_pass_leaves_the_global_random_state_alone(self, shared_folder):
        before = torch.get_rng_state()
        list(images(shared_folder).batches(to_tensor))
        assert torch.equal(before, torch.get_rng_state())

    def test_if_no_image_is_readable_the_reasons_are_told(self, tmp_path):
        for number in range(7):
            bomb(tmp_path / f"{number}.png")
        with pytest.raises(DataError, match="None of 7 images can be read:") as error:
            list(images(tmp_path).batches(to_tensor))
        text = str(error.value)
        assert "0.png: more than" in text
        assert "and 2 more" in text

    def test_sizes_that_differ_in_a_batch_name_both_files(self, tmp_path):
        plain(tmp_path / "a.png", size=8)
        plain(tmp_path / "b.png", size=9)
        message = r"a.png became \(3, 8, 8\) and .*b.png \(3, 9, 9\). Let the preprocessing crop"
        with pytest.raises(DataError, match=message):
            list(images(tmp_path).batches(to_tensor))
        assert len(list(images(tmp_path).batches(to_tensor, batch_size=1))) == 2

    @pytest.mark.parametrize(
        ("preprocess", "message"),
        [
            (lambda image: 1 / 0, r"preprocess failed on .*00.png \(8, 8\): ZeroDivisionError"),
            (lambda image: image, "preprocess returned Image for .*00.png"),
            (lambda image: to_tensor(image)[0], r"returned torch.float32 \(8, 8\)"),
            (lambda image: to_tensor(image).int(), r"returned torch.int32 .* float tensor"),
        ],
    )
    @pytest.mark.parametrize("workers", [0, 1])
    def test_a_preprocessing_that_fails_stops_the_pass(
        self, shared_folder, preprocess, message, workers
    ):
        with pytest.raises(DataError, match=message):
            list(images(shared_folder).batches(preprocess, workers=workers))

    @pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": -1}])
    def test_impossible_numbers_are_refused(self, shared_folder, options):
        with pytest.raises(DataError, match="allowed are batch_size from 1 and workers from 0"):
            images(shared_folder).batches(to_tensor, **options)


class TestDigest:
    def test_it_is_that_of_the_lines_of_sha256sum(self, tmp_path):
        plain(tmp_path / "b.png")
        plain(tmp_path / "a" / "ü.png", (1, 1, 1))
        lines = [
            f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n"
            for name in ("a/ü.png", "b.png")
        ]
        expected = hashlib.sha256("".join(lines).encode()).hexdigest()
        assert images(tmp_path).digest() == expected

    def test_neither_place_nor_order_changes_it(self, shared_folder, tmp_path):
        digest = images(shared_folder).digest()
        shutil.copytree(shared_folder, tmp_path / "copy")
        assert images(tmp_path / "copy").digest() == digest
        backwards = images(images(shared_folder).paths[::-1])
        assert backwards.digest() == digest

    def test_names_contents_and_absence_change_it(self, tmp_path):
        folder = folder_of(tmp_path, 2)
        digests = [images(folder).digest()]
        os.utime(folder / "00.png", (0, 0))
        assert images(folder).digest() == digests[0]
        plain(folder / "00.png", (9, 9, 9))
        digests.append(images(folder).digest())
        (folder / "00.png").rename(folder / "zz.png")
        whole = images(folder)
        digests.append(whole.digest())
        (folder / "zz.png").unlink()
        digests.append(whole.digest())
        digests.append(images(folder).digest())
        assert len(set(digests)) == len(digests)

    def test_files_of_one_name_do_not_depend_on_where_they_lie(self, tmp_path):
        one, two = plain(tmp_path / "a" / "x.png"), plain(tmp_path / "b" / "x.png", (0, 0, 0))
        digest = images([one, two]).digest()
        shutil.move(tmp_path / "a", tmp_path / "c")
        assert images([tmp_path / "c" / "x.png", two]).digest() == digest
