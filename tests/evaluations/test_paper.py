"""The paper's list: what is here, what is missing and how to get it; and the command line."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from ttreg_interp.cli import main
from ttreg_interp.data.open import FORMATS
from ttreg_interp.errors import DataError
from ttreg_interp.evaluations.catalogue import EVALUATIONS, evaluation_of, options_of
from ttreg_interp.evaluations.paper import Choice, jobs, paper_list, survey
from ttreg_interp.evaluations.weights import weights_at_hand
from ttreg_interp.hooked.load import ModelSpec

MODEL = "timm:test_vit?random"


def boxes(root: Path, count: int = 3) -> Path:
    for folder in ("images", "boxes"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (60, 40), (50 * i, 90, 10)).save(root / "images" / f"{i}.png")
        (root / "boxes" / f"{i}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    return root


def voc(root: Path) -> Path:
    """VOC 2007 with two images."""
    base = root / "voc" / "VOCdevkit" / "VOC2007"
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (base / folder).mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (60, 40), (90, 20, 10)).save(base / "JPEGImages" / f"{name}.jpg")
        box = "<xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>30</ymax>"
        text = f"<annotation><object><bndbox>{box}</bndbox></object></annotation>"
        (base / "Annotations" / f"{name}.xml").write_text(text)
    (base / "ImageSets" / "Main" / "trainval.txt").write_text("a\nb\n")
    return root


@pytest.fixture(scope="module")
def neurons(tmp_path_factory):
    """A neuron file of the random model."""
    body = {
        "schema": "register-neurons/1",
        "model": MODEL,
        "index_base": 0,
        "layer_to_neurons": {"3": [7]},
    }
    file = tmp_path_factory.mktemp("neurons") / "neurons.json"
    file.write_text(json.dumps(body))
    return file


def test_every_entry_of_the_list_names_what_exists():
    listed = paper_list()
    for entry in listed["evaluations"]:
        evaluation_of(entry["name"], entry.get("options"))
        assert set(entry["data"].values()) <= set(listed["data"])
        assert set(entry["models"]) <= set(listed["models"])
    for one in listed["data"].values():
        assert one["spec"].partition(":")[0] in FORMATS and one["get"]
    for one in listed["models"].values():
        ModelSpec.parse(one["spec"])


def test_nothing_at_hand_says_what_to_get(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *name: None)
    found = jobs(tmp_path)
    assert all(job.missing for job in found)
    text = survey(found)
    assert "0 of 20 can run" in text
    for words in ("ILSVRC2012", "cocodataset.org", "no weights of hf:facebook/dinov2-large"):
        assert words in text


def test_a_job_is_ready_once_data_weights_and_neurons_are_there(tmp_path):
    voc(tmp_path)
    found = jobs(tmp_path, Choice((MODEL,), "neurons.json"))
    ready = [job for job in found if not job.missing]
    assert [(job.table, job.name) for job in ready] == [("5, 11", "lost")]
    assert ready[0].data == {"test": f"voc2007:{tmp_path / 'voc'}#trainval"}
    without = [job for job in jobs(tmp_path, Choice((MODEL,))) if job.name == "lost"][0]
    assert any("no register neurons" in text for text in without.missing)


def test_a_model_that_is_none_is_refused(tmp_path):
    with pytest.raises(DataError, match="neither a model of the paper .* nor a spec"):
        jobs(tmp_path, Choice(("dino",)))
    with pytest.raises(DataError, match="is no folder"):
        jobs(tmp_path / "no")


def test_weights_are_looked_for_without_loading_them(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda repository, name: "here" if repository.startswith("timm/vit_base") else None,
    )
    assert weights_at_hand("open_clip:ViT-B-16/openai")
    assert not weights_at_hand("open_clip:ViT-B-16/laion2b_s34b_b88k")
    assert not weights_at_hand("hf:facebook/dinov2-large")
    assert weights_at_hand("testbed:planted")


def test_options_reach_fields_also_nested_ones():
    found = evaluation_of("zero-shot", options_of(["prompts.templates=photo"]))
    assert found.prompts.templates == "photo" and found.prompts.names == "imagenet"
    for options, words in (
        ({"nothing": 1}, "has no field 'nothing'"),
        ({"prompts.nothing": 1}, "Prompts has no field 'nothing'"),
    ):
        with pytest.raises(DataError, match=words):
            evaluation_of("zero-shot", options)
    with pytest.raises(DataError, match="is not KEY=VALUE"):
        options_of(["k"])
    with pytest.raises(DataError, match=", ".join(EVALUATIONS)):
        evaluation_of("no such")


def test_an_evaluation_from_the_command_line(tmp_path, capsys, neurons):
    data = f"yolo:{boxes(tmp_path / 'set')}"
    call = ["eval", "lost", "--model", MODEL, "--data", data, "--out", str(tmp_path / "out")]
    more = ["--neurons", str(neurons), "--arms", "register", "random", "--n-draws", "2", "--force"]
    assert main([*call, *more, "--set", "biases=[0.0]", "last_layers=1", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert [row["arm"] for row in body["rows"][::5]] == ["intact", "register", "random"]
    assert (tmp_path / "out" / "table.tex").is_file()


def test_the_paper_from_the_command_line_runs_what_it_can(tmp_path, capsys, neurons):
    voc(tmp_path)
    call = ["eval", "paper", "--models", MODEL, "--data", str(tmp_path), "--n-draws", "2"]
    more = ["--neurons", str(neurons), "--force", "--out", str(tmp_path / "out")]
    assert main([*call, *more, "--dry-run"]) == 0
    assert "1 of 9 can run" in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert main([*call, *more]) == 0
    assert "object discovery (LOST): 2 test images" in capsys.readouterr().out
    assert (tmp_path / "out/table5/lost-voc2007/timm_test_vit_random/result.json").is_file()


def test_bad_calls_say_what_is_wrong(tmp_path, capsys):
    data = f"yolo:{boxes(tmp_path / 'set')}"
    call = ["eval", "lost", "--data", data, "--out", str(tmp_path / "out")]
    assert main([*call, "--model", MODEL]) == 1
    assert "register, zero, bias, random need register neurons" in capsys.readouterr().err
    assert main(call) == 1
    assert "Found 0 models; `ttreg eval lost` takes one" in capsys.readouterr().err
    assert main(["eval", "paper", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="torchrun's launcher is for POSIX")
def test_two_processes_of_torchrun_give_what_one_gives(tmp_path):
    import os
    import subprocess

    data = f"yolo:{boxes(tmp_path / 'set', 40)}"
    common = ["eval", "lost", "--model", MODEL, "--data", data, "--set", "biases=[0.0]", "--arms"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python"]
    ttreg = [str(Path(sys.executable).parent / "ttreg"), *common]
    two = [sys.executable, *launch, *ttreg, "--out", str(tmp_path / "two")]
    subprocess.run(two, env=environment, check=True, capture_output=True)
    assert main([*common, "--out", str(tmp_path / "one")]) == 0
    one, two = (json.loads((tmp_path / n / "result.json").read_text()) for n in ("one", "two"))
    assert one["rows"] == two["rows"] and one["n_images"] == {"test": 40}
