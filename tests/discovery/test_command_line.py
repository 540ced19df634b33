"""Discovery from the command line: shards, pictures, lists by name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ttreg_interp.cli import main


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    from ttreg_interp.testbed import save_photographs

    folder = tmp_path_factory.mktemp("photographs")
    save_photographs(folder, size=96)
    return folder


@pytest.fixture(scope="module")
def find(photographs):
    model = ["testbed:planted", "--image-size", "96", "--images", str(photographs)]
    choices = ["--no-evidence", "--batch-size", "4"]
    return ["find", *model, *choices]


@pytest.fixture(scope="module")
def in_one_piece(find, tmp_path_factory):
    file = tmp_path_factory.mktemp("whole") / "neurons.json"
    picture = file.with_suffix(".png")
    assert main([*find, "--out", str(file), "--plot", str(picture)]) == 0
    assert picture.stat().st_size > 5000
    return file.read_bytes()


def test_shards_merged_give_the_file_of_one_run(find, in_one_piece, tmp_path, capsys):
    parts = [str(tmp_path / f"part{i}") for i in range(2)]
    for i, part in enumerate(parts):
        assert main([*find, "--shard", f"{i}/2", "--resume", part]) == 0
    assert "`ttreg merge` joins all" in capsys.readouterr().out
    merged = str(tmp_path / "merged")
    assert main(["merge", *parts, "--out", merged, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"merged": merged, "shards": 2}
    out = tmp_path / "neurons.json"
    assert main([*find, "--resume", merged, "--out", str(out)]) == 0
    assert out.read_bytes() == in_one_piece


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shard", "0/2"], "leaves its sums in the file of --resume, which is not given"),
        (["--shard", "half", "--resume", "x"], "--shard half: write I/N, such as 0/4"),
        (["--shard", "2/2", "--resume", "x"], "Shard 2 of 2: numbers run from 0"),
        (["--resume", "missing/part", "--shard", "0"], "--shard 0: write I/N"),
    ],
)
def test_a_shard_that_makes_no_sense_is_refused(find, more, message, capsys):
    assert main([*find, *more]) == 1
    assert message in capsys.readouterr().err


def test_torchrun_starts_the_command_itself(find, in_one_piece, tmp_path):
    """As a user's shell does: two processes, gloo, one file."""
    folder = Path(sys.executable).parent
    out = tmp_path / "neurons.json"
    command = [
        folder / "torchrun",
        "--standalone",
        "--nproc-per-node",
        "2",
        folder / "ttreg",
        *find,
        "--out",
        out,
    ]
    ran = subprocess.run(
        [*map(str, command), "--json"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert out.read_bytes() == in_one_piece
    assert json.loads(ran.stdout)["out"] == str(out)  # printed once


def test_shards_that_are_missing_are_told(find, tmp_path, capsys):
    part = str(tmp_path / "part")
    assert main([*find, "--shard", "1/2", "--resume", part]) == 0
    assert main(["merge", part, "--out", str(tmp_path / "merged")]) == 1
    assert "Found shards [1] of 2; a merge needs each of them once" in capsys.readouterr().err


def test_published_lists_are_named_shown_and_compared(capsys, tmp_path):
    assert main(["neurons"]) == 0
    assert "dinov2_vitl14_hub" in capsys.readouterr().out.split()
    assert main(["neurons", "dinov2_vitl14_hub"]) == 0
    assert "45 neurons" in capsys.readouterr().out
    ranked = "dinov2_vitl14_pt_ranking_top200"
    picture = tmp_path / "ranking.png"
    assert main(["neurons", ranked, "dinov2_vitl14_hub", "--json", "--plot", str(picture)]) == 0
    assert json.loads(capsys.readouterr().out)["only_second"] < 45
    assert picture.stat().st_size > 5000


def test_outliers_by_norm_and_by_attention_are_told_and_drawn(photographs, tmp_path, capsys):
    images = ["--image-size", "96", "--images", str(photographs), "--limit", "4"]
    picture = tmp_path / "norms.png"
    asked = ["outliers", "testbed:planted", *images, "--attention", "--plot", str(picture)]
    assert main([*asked, "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["emerges_at"] == 3
    assert len(body["attention"]["layers"]) == len(body["layers"])
    assert picture.stat().st_size > 5000
