"""The command line as a stranger uses it: help, results, files, exit status, and bad input."""

import json

import pytest
from PIL import Image

from ttreg_interp.cli import COMMANDS, main

MODEL = "testbed:planted"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    from ttreg_interp.testbed import save_photographs

    folder = tmp_path_factory.mktemp("photographs")
    save_photographs(folder, size=96)
    return folder


@pytest.fixture(scope="module")
def neurons(photographs, tmp_path_factory):
    file = tmp_path_factory.mktemp("found") / "neurons.json"
    find = ["find", MODEL, "--image-size", "96", "--images", str(photographs), "--out", str(file)]
    assert main([*find, "--no-evidence"]) == 0
    return file


def apply(neurons, photographs, out, *more):
    images = [
        "--image-size",
        "96",
        "--images",
        str(photographs),
        "--limit",
        "5",
        "--n-examples",
        "1",
    ]
    return main(["apply", MODEL, "--neurons", str(neurons), "--out", str(out), *images, *more])


@pytest.mark.parametrize("command", [[], *[[name] for name in COMMANDS]])
def test_help_is_there_for_everything(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert "usage: ttreg" in capsys.readouterr().out


def test_models_lists_every_source(capsys):
    from ttreg_interp.cli.models import LANGUAGE
    from ttreg_interp.hooked.sources import SOURCES

    assert main(["models", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {*SOURCES, *LANGUAGE}
    assert main(["models"]) == 0
    assert "open_clip:ViT-B-16/laion2b_s34b_b88k" in capsys.readouterr().out


def test_verify_says_yes_and_writes_the_table_of_the_docs(capsys):
    assert main(["verify", "timm:test_vit?random", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["passed"] is True
    assert main(["verify", "timm:test_vit?random", "--markdown"]) == 0
    assert (
        "| `timm:test_vit?random=0` | timm VisionTransformer | 0.0e+00 |" in capsys.readouterr().out
    )


def test_verify_says_no(capsys, monkeypatch):
    from ttreg_interp.hooked import contract

    monkeypatch.setitem(contract.TOLERANCE, __import__("torch").float32, -1.0)
    assert main(["verify", "timm:test_vit?random"]) == 1
    assert "NO" in capsys.readouterr().out


def test_find_saves_the_planted_neurons(neurons):
    from ttreg_interp.testbed import planted_vit

    saved = json.loads(neurons.read_text())
    truth = {str(layer): list(ns) for layer, ns in planted_vit(image_size=96).truth.items()}
    assert saved["schema"] == "register-neurons/1"
    assert saved["layer_to_neurons"] == truth


def test_apply_writes_what_changed(neurons, photographs, tmp_path, capsys):
    assert apply(neurons, photographs, tmp_path, "--json") == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert json.loads(capsys.readouterr().out) == summary
    last = summary["layers"][-1]
    assert last["max_over_median_before"] > 5 > 2 > last["max_over_median_after"]
    assert last["attention_on_register"] > 0.5 and summary["n_images"] == 5
    assert {"maps.png", "layers.png", "report.html"} <= {file.name for file in tmp_path.iterdir()}


def test_an_intervention_file_is_applied(photographs, tmp_path):
    from ttreg_interp.interventions import ExtraTokens

    (tmp_path / "extra.json").write_text(ExtraTokens(2).to_json())
    images = [
        "--image-size",
        "96",
        "--images",
        str(photographs),
        "--limit",
        "2",
        "--n-examples",
        "1",
    ]
    given = ["--intervention", str(tmp_path / "extra.json"), "--out", str(tmp_path / "out")]
    assert main(["apply", MODEL, *images, *given]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["intervention"]["kind"] == "ExtraTokens"


def test_a_neuron_file_of_other_weights_is_refused_unless_forced(
    neurons, photographs, tmp_path, capsys
):
    body = json.loads(neurons.read_text())
    body["provenance"]["weights_hash"] = "0" * 64
    body["weights_hash"] = "0" * 64
    other = tmp_path / "other.json"
    other.write_text(json.dumps(body))
    assert apply(other, photographs, tmp_path / "out") == 1
    assert "ttreg: " in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert apply(other, photographs, tmp_path / "out", "--force") == 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "no image"),
        (lambda folder: (folder / "broken.jpg").write_bytes(b"no picture"), "broken.jpg"),
    ],
)
def test_folders_without_readable_images_are_told(make, said, tmp_path, neurons, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    make(folder)
    assert apply(neurons, folder, tmp_path / "out") == 1
    assert said in capsys.readouterr().err.lower() and not (tmp_path / "out").exists()
    assert (
        main(["find", MODEL, "--images", str(tmp_path / "gone"), "--out", str(tmp_path / "n.json")])
        == 1
    )
    assert "gone" in capsys.readouterr().err and not (tmp_path / "n.json").exists()


def test_odd_images_are_used_and_unreadable_ones_counted(neurons, photographs, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    picture = Image.open(next(photographs.iterdir())).convert("RGB")
    picture.convert("L").save(folder / "grey.png")
    picture.convert("RGBA").save(folder / "alpha.png")
    picture.convert("P").save(folder / "palette.png")
    picture.convert("L").convert("I;16").save(folder / "deep.png")
    picture.resize((301, 173)).save(folder / "wide.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "wide.jpg").read_bytes()[:900])
    assert apply(neurons, folder, tmp_path / "out", "--limit", "9") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["n_images"] == 5
    assert (
        len(summary["images"]["skipped"]) == 1
        and "truncated.jpg" in summary["images"]["skipped"][0]
    )


def test_a_model_without_outliers_says_so(photographs, tmp_path, capsys):
    find = ["find", "testbed:clean", "--image-size", "96", "--images", str(photographs)]
    assert main([*find, "--out", str(tmp_path / "none.json"), "--no-evidence"]) == 0
    assert "no outlier" in capsys.readouterr().out.lower()
    assert json.loads((tmp_path / "none.json").read_text())["layer_to_neurons"] == {}
    capsys.readouterr()
    images = ["--image-size", "96", "--images", str(photographs), "--out", str(tmp_path / "out")]
    assert main(["apply", "testbed:clean", "--neurons", str(tmp_path / "none.json"), *images]) == 1
    assert "holds no neurons" in capsys.readouterr().err


def test_auto_refuses_numbers_beside_it(photographs, tmp_path, capsys):
    find = ["find", MODEL, "--images", str(photographs), "--out", str(tmp_path / "n.json")]
    assert main([*find, "--auto", "--top-k", "3"]) == 1
    assert (
        "--auto chooses every number from the images, but --top-k was given"
        in capsys.readouterr().err
    )


def test_the_demo_finds_what_was_planted(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "--n-controls", "2", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["exact"] and body["found"] == body["planted"]
    change = {
        name: arm["output"]["relative_change"]["estimate"] for name, arm in body["arms"].items()
    }
    assert change["register neurons zeroed"] > 0.5
    assert change["test-time register"] < 0.1
    assert all(value < 0.02 for name, value in change.items() if name.startswith("as many random"))
    assert (tmp_path / "report.html").stat().st_size > 100_000


def test_importing_the_package_stays_light():
    import subprocess
    import sys

    heavy = "matplotlib timm open_clip sklearn skimage nnsight circuitsvis plotly gradio datasets transformer_lens torch"
    code = f"import sys, ttreg_interp; print([m for m in {heavy.split()!r} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_neuron_files_are_shown_and_compared(capsys):
    from importlib.resources import files

    published = files("ttreg_interp.discovery") / "published"
    hub, named = (str(published / f"dinov2_vitl14_{name}.json") for name in ("hub", "paper_named"))
    assert main(["neurons", hub]) == 0
    assert "45 neurons" in capsys.readouterr().out
    assert main(["neurons", hub, named, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shared"] == 3
    assert main(["neurons", hub, hub, hub]) == 1
    assert "give one to show, or two to compare" in capsys.readouterr().err


def test_outliers_are_described(photographs, capsys):
    images = ["--image-size", "96", "--images", str(photographs), "--limit", "8"]
    assert main(["outliers", MODEL, *images, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["emerges_at"] == 3


def test_a_page_is_built_again(neurons, photographs, tmp_path):
    assert apply(neurons, photographs, tmp_path) == 0
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text() == (tmp_path / "report.html").read_text()
