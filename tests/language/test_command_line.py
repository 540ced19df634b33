"""`ttreg language`, and what the commands that read images say of a language model."""

import json

import pytest
from PIL import Image

from ttreg_interp.cli import main
from ttreg_interp.errors import DataError
from ttreg_interp.interventions import ZeroNeurons
from ttreg_interp.metrics.language import read_texts
from ttreg_interp.testbed.planted_lm import planted_lm


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Texts of the planted Llama, as token ids."""
    file = tmp_path_factory.mktemp("texts") / "ids.json"
    file.write_text(json.dumps(planted_lm("llama").texts(10, 24).tolist()), encoding="utf-8")
    return file


def test_the_command_tells_massive_activations_sinks_and_neurons(texts, capsys):
    options = ["language", "testbed-lm:llama", "--texts", str(texts), "--length", "24"]
    assert main([*options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["massive_activations"]["dims"] == [62, 63] and found["sinks"]["rate"] == 0.5
    assert found["neurons"]["neurons"] == {"1": [7, 70]} and found["loss"]["n"] == 10
    assert main(options) == 0
    said = capsys.readouterr().out
    assert "dimensions [62, 63]" in said and "layer 1: 7, 70" in said and "50.0% of heads" in said


def test_a_model_of_images_is_told_where_to_go(texts, capsys):
    assert main(["language", "timm:test_vit?random", "--texts", str(texts)]) == 1
    assert "tt.find_register_neurons(model, images)" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["find", "outliers", "apply"])
def test_commands_that_read_images_say_what_to_use_for_a_language_model(command, tmp_path, capsys):
    from skimage.data import astronaut
    from skimage.io import imsave

    edit = tmp_path / "edit.json"
    edit.write_text(ZeroNeurons({1: [7]}).to_json(), encoding="utf-8")
    imsave(tmp_path / "a.png", astronaut()[:64, :64])
    options = [command, "testbed-lm:llama", "--images", str(tmp_path / "a.png")]
    extra = ["--out", str(tmp_path / "out"), "--intervention", str(edit)]
    assert main([*options, *(extra if command == "apply" else [])]) == 1
    said = capsys.readouterr().err
    assert "reads texts, not images" in said and "ttreg language" in said


def test_no_language_model_is_evaluated_on_images(tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (64, 64)).save(images / "a.png")
    (tmp_path / "boxes").mkdir()
    (tmp_path / "boxes" / "a.txt").write_text("0 0.5 0.5 0.5 0.5", encoding="utf-8")
    model, data, out = "testbed-lm:llama", f"yolo:{tmp_path}", str(tmp_path / "out")
    assert main(["eval", "lost", "--model", model, "--data", data, "--out", out, "--arms"]) == 1
    assert "reads texts, not images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.txt", "one text\nanother", ["one text", "another"]),
        ("t.json", '["one text", "another"]', ["one text", "another"]),
        ("i.json", "[[0, 1, 2], [0, 3, 4]]", [[0, 1, 2], [0, 3, 4]]),
    ],
)
def test_texts_are_lines_or_json(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content, encoding="utf-8")
    found = read_texts(tmp_path / name)
    assert (found if isinstance(found, list) else found.tolist()) == expected


@pytest.mark.parametrize("content", ['{"a": 1}', "[[0, 1], [0]]", "[]", "[0.5]", "3"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "t.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="holds neither texts, one a line, nor a JSON list"):
        read_texts(tmp_path / "t.json")
    with pytest.raises(DataError, match="No file of texts at"):
        read_texts(tmp_path / "none.json")
