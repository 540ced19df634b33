"""`ttreg eval paper` end to end: what is left out, what fails, and the report of all results."""

import json
import logging
from pathlib import Path

import pytest

from ttreg_interp.cli import main
from ttreg_interp.errors import DataError
from ttreg_interp.evaluations.paper import Choice, jobs, left_out_lines, run_all, survey
from ttreg_interp.evaluations.paper_report import ending, save, tables

from .paper_sets import all_sets, imagenet, rta100, voc

MODEL = "timm:test_vit?random"


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


@pytest.fixture(scope="module", autouse=True)
def _few_resamples():
    """Intervals of 99 resamples: nothing here hangs on how wide they are."""
    from ttreg_interp.metrics import _resampling, intervals

    with pytest.MonkeyPatch.context() as patch:
        for module in (_resampling, intervals):
            patch.setattr(module, "RESAMPLES", 99)
        yield


@pytest.fixture(scope="module")
def ran(tmp_path_factory, neurons):
    """A folder in which all evaluations of the paper ran on tiny sets, and the exit status."""
    root = tmp_path_factory.mktemp("paper")
    data, out = all_sets(root / "data"), root / "out"
    call = ["eval", "paper", "--models", MODEL, "--data", str(data), "--out", str(out)]
    more = ["--neurons", str(neurons), "--force", "--n-draws", "2", "--trained", MODEL + "=3"]
    return out, main([*call, *more])


def test_what_runs_runs_though_other_jobs_fail(ran):
    out, status = ran
    assert status == 1  # two jobs failed
    done = sorted(str(file.parent.relative_to(out)) for file in out.glob("*/*/*/result.json"))
    model = "timm_test_vit_random"
    assert done == [
        f"table2/depth-probe-nyu/{model}",
        f"table2/linear-probe-imagenet/{model}",
        f"table2/segmentation-probe-ade20k/{model}",
        f"table4/attention-segmentation-imagenet-segmentation/{model}",
        f"table5/lost-coco20k/{model}",
        f"table5/lost-voc2007/{model}",
        f"table5/lost-voc2012/{model}",
    ]


def test_the_report_has_the_papers_tables_and_says_what_did_not_run(ran):
    text = (ran[0] / "report.md").read_text()
    for words in (
        "## Table 2, 13: linear probes",
        "| model | arm | ImageNet top-1 % | difference | paper | ADE20K mIoU % |",
        "## Table 5, 11: unsupervised object discovery",
        "| timm:test_vit?random=0 | + test-time register |",
        "| timm:test_vit?random=0 | trained registers |",
        "Failed: 2.",
        "has no text tower",
        "Arms left out: 4.",
        "- bias, in 1 evaluation: k' and v' are measured",
    ):
        assert words in text
    assert "## Table 12" not in text


def test_the_report_is_a_table_of_latex_too(ran):
    text = (ran[0] / "report.tex").read_text()
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3
    assert r"NYUd rmse [m]" in text and r"\quad + test-time register & " in text
    assert r"\shortstack{$" in text and r"{\scriptsize $\Delta$} $" in text
    body = text.split(r"\begin{tabular}{lccc}")[1].split(r"\end{tabular}")[0]
    rows = [line for line in body.splitlines() if " & " in line]
    assert all(line.count(" & ") == 3 for line in rows)


def test_a_line_is_what_the_result_says(ran):
    table = next(table for table in tables(ran[0]) if table.number == "4")
    file = next(ran[0].glob("table4/*/*/result.json"))
    rows = {(r["arm"], r["metric"]): r for r in json.loads(file.read_text())["rows"]}
    for line in table.lines:
        for metric, cell in zip(("mIoU %", "pixel accuracy %", "mAP %"), line.cells, strict=True):
            row = rows[line.arm, metric]
            assert cell.value.to_dict() == row["value"]
            assert (cell.difference and cell.difference.to_dict()) == row["difference"]


def test_the_papers_own_numbers_stand_beside_its_models(tmp_path):
    rows = [
        {"arm": arm, "metric": "corloc %, best of 132", "value": value(x), "difference": None}
        for arm, x in (("intact", 30.0), ("register", 52.5), ("trained registers", 55.0))
    ]
    body = {"rows": rows, "n_images": {"test": 5}, "faults": {"test": ["a: bad"]}}
    for folder, first in (("dinov2", 30.0), ("dinov2.without-trained", 1.0)):
        rows[0]["value"] = value(first)
        file = tmp_path / "table5" / "lost-voc2007" / folder / "result.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(body))
    (table,) = tables(tmp_path)
    assert table.columns == ("VOC 2007", "VOC 2012", "COCO 20k")
    published = {line.arm: line.cells[0].published for line in table.lines}
    assert published == {"intact": 32.2, "register": 53.8, "trained registers": 56.2}
    assert table.lines[0].cells[0].value.estimate == 30.0  # the run with all arms
    assert table.lines[0].cells[1] is None
    text = save([table], "", tmp_path)
    assert "| DINOv2 ViT-L/14 | intact | 30.0 [29.0, 31.0] |  | 32.2 | - |  |  |" in text
    assert "- VOC 2007, DINOv2 ViT-L/14: 5 test images, 1 left out." in text


def value(x: float) -> dict:
    return {"estimate": x, "low": x - 1, "high": x + 1, "level": 0.95, "method": "made up", "n": 5}


def found_in(root: Path, **options) -> list:
    return jobs(root, Choice((MODEL,), "neurons.json", **options))


def test_an_arm_that_cannot_run_is_left_out_counted_and_told(tmp_path, monkeypatch):
    imagenet(tmp_path / "imagenet", 1)
    rta100(tmp_path / "rta100", marked=False)
    found = {job.name: job for job in found_in(tmp_path) if not job.missing}
    assert found["zero-shot"].arms == ("register", "zero", "random")
    assert found["zero-shot"].folder.endswith(".without-bias")
    assert found["typographic"].arms == ("zero", "noise")
    assert "Arms left out: 4." in left_out_lines(list(found.values()))
    assert "ready, without bias |" in survey(list(found.values()))
    rta100(tmp_path / "rta100", marked=True)
    found = {job.name: job for job in found_in(tmp_path, fit=tmp_path) if not job.missing}
    assert "bias" in found["zero-shot"].arms and "text-move" in found["typographic"].arms
    assert not any(job.left_out for job in found.values())


def test_trained_registers_are_an_arm_where_their_weights_are_at_hand(tmp_path):
    voc(tmp_path / "voc")
    job = next(j for j in found_in(tmp_path, trained="timm:vit@no.file") if not j.missing)
    assert job.trained is None and "no weights of timm:vit@no.file" in job.left_out["trained"]
    job = next(j for j in found_in(tmp_path, trained=MODEL) if not j.missing)
    assert job.trained == MODEL and not job.left_out


def test_an_error_of_any_kind_ends_its_own_job_alone(tmp_path, caplog):
    imagenet(tmp_path / "imagenet", 1)
    voc(tmp_path / "voc")
    found = found_in(tmp_path)
    errors = {"linear-probe": DataError("no good"), "zero-shot": RuntimeError("out of memory")}
    ran = []

    def run(job):
        ran.append(job.name)
        if job.name in errors:
            raise errors[job.name]

    with caplog.at_level(logging.ERROR, "ttreg_interp"):
        failed = run_all(found, run)
    assert ran == ["linear-probe", "zero-shot", "lost"]
    assert list(failed.values()) == ["no good", "RuntimeError: out of memory"]
    text = ending(found, failed)
    assert "Failed: 2." in text and f"Not run for want of data, weights or neurons: {6}." in text
    assert caplog.text.count("failed: table") == 2


def test_options_that_the_paper_cannot_take_are_refused(tmp_path, capsys):
    call = ["eval", "paper", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    for more, words in (
        (["--set", "k=3"], "--set belongs to a single evaluation"),
        (["--neurons", "n.json"], "--neurons: of which model"),
        (["--fit", str(tmp_path / "no")], "is no folder"),
    ):
        assert main([*call, *more]) == 1
        assert words in capsys.readouterr().err
