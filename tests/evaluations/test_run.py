"""Runs: what is measured is what arms alone give; kills, shards, faults and strangers change nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ttreg_interp.data.annotated import Fault, Mask
from ttreg_interp.discovery.checkpoint import Shard
from ttreg_interp.errors import ArtifactError, ContractError, DataError, InterventionError
from ttreg_interp.evaluations import run as running
from ttreg_interp.evaluations.arms import standard_arms
from ttreg_interp.evaluations.classification import Classification
from ttreg_interp.evaluations.records import header
from ttreg_interp.evaluations.run import evaluate
from ttreg_interp.interventions import Empty, TestTimeRegister, ZeroNeurons
from ttreg_interp.metrics.intervals import controls_interval, mean_interval, paired_difference

from .small import classifier, images_of

NEURONS = {0: range(0, 60)}


@pytest.fixture(scope="module")
def model():
    return classifier()


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(running, "CHUNK", 3)


def correct(model, data, intervention):
    images = torch.stack([model.preprocess(item.read_image()) for item in data.items])
    truth = torch.tensor([item.read()[1] for item in data.items])
    with torch.no_grad(), model.intervened(intervention):
        return (model(images).argmax(dim=1) == truth).double() * 100


def test_the_table_is_what_each_arm_gives_alone(model, tmp_path):
    data = images_of(int, 12)
    register = TestTimeRegister(NEURONS)
    draws = {f"draw {i}": ZeroNeurons({0: range(i, 60 + i)}) for i in (3, 20, 40)}
    arms = {"register": register, "random": draws}
    found = evaluate(Classification(), model, data, arms, tmp_path, batch_size=2, seed=4)
    intact, moved = correct(model, data, Empty()), correct(model, data, register)
    assert not torch.equal(intact, moved) and 0 < intact.mean() < 100
    alone = torch.stack([correct(model, data, one).mean() for one in draws.values()])
    assert found["intact", "top-1 %"].value == mean_interval(intact, seed=4)
    assert found["intact", "top-1 %"].difference is None
    assert found["register", "top-1 %"].difference == paired_difference(moved, intact, seed=4)
    assert found["random", "top-1 %"].value == controls_interval(alone)
    assert found.n_images == {"test": 12}


def test_another_checkpoint_is_an_arm(model, tmp_path):
    data = images_of(int, 6)
    trained = classifier(reg_tokens=2)
    found = evaluate(Classification(), model, data, {"trained registers": trained}, tmp_path)
    expected = mean_interval(correct(trained, data, Empty()))
    assert found["trained registers", "top-1 %"].value == expected
    assert (
        found.config["arms"]["trained registers"]["weights_hash"]
        != (found.config["arms"]["intact"]["weights_hash"])
    )


def test_a_killed_run_goes_on_at_its_next_chunk(model, tmp_path, monkeypatch):
    data, arms = images_of(int, 8), {"register": TestTimeRegister(NEURONS)}
    whole = evaluate(Classification(), model, data, arms, tmp_path / "whole")
    measured = []
    original = running._Measured._read

    def dying(self, chunk):
        measured.append(chunk.number)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return original(self, chunk)

    monkeypatch.setattr(running._Measured, "_read", dying)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Classification(), model, data, arms, tmp_path / "killed")
    resumed = evaluate(Classification(), model, data, arms, tmp_path / "killed")
    assert measured == [0, 1, 1, 2]
    assert resumed.rows == whole.rows
    evaluate(Classification(), model, data, arms, tmp_path / "killed")
    assert measured == [0, 1, 1, 2]


def test_shards_write_what_one_process_writes(model, tmp_path, monkeypatch):
    data, arms = images_of(int, 8), {"register": TestTimeRegister(NEURONS)}
    whole = evaluate(Classification(), model, data, arms, tmp_path / "whole")
    monkeypatch.setattr(running.dist, "barrier", lambda: None)
    monkeypatch.setattr(running, "current_shard", lambda: Shard(1, 2))
    with pytest.raises(ArtifactError, match="If a shard has not run yet, run it"):
        evaluate(Classification(), model, data, arms, tmp_path / "shards")
    monkeypatch.setattr(running, "current_shard", lambda: Shard(0, 2))
    assert evaluate(Classification(), model, data, arms, tmp_path / "shards").rows == whole.rows


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"arms": {"zero": ZeroNeurons(NEURONS)}}, "arms.zero: 'None' there"),
        ({"data": images_of(int, 5)}, "data.test.n_images: '4' there, '5' here"),
        ({"model": classifier(embed_dim=16)}, "weights_hash"),
    ],
)
def test_a_folder_of_another_run_is_refused(model, tmp_path, changed, words):
    given = {"model": model, "data": images_of(int, 4), "arms": {}}
    evaluate(Classification(), folder=tmp_path, **given)
    with pytest.raises(ArtifactError, match=f"belongs to another run .*{words}"):
        evaluate(Classification(), folder=tmp_path, **{**given, **changed})


def test_images_at_fault_are_left_out_of_all_arms_counted_and_told(model, tmp_path, caplog):
    data = images_of(int, 7)
    whole = evaluate(Classification(), model, data, {}, tmp_path / "whole")

    def broken():
        raise DataError("cannot be decoded: damaged")

    items = [
        replace(one, read_image=broken) if i in (2, 6) else one for i, one in enumerate(data.items)
    ]
    fault = Fault(Path("notes.xml"), "no object", 7)
    damaged = replace(data, items=tuple(items), faults=(fault,))
    arms = {"register": TestTimeRegister(NEURONS)}
    found = evaluate(Classification(), model, damaged, arms, tmp_path / "damaged")
    assert found.n_images == {"test": 5}
    assert found.faults["test"] == (
        "notes.xml, line 7: no object",
        "image 2: 2.png: cannot be decoded: damaged",
        "image 6: 6.png: cannot be decoded: damaged",
    )
    assert "image 6" in caplog.text and "3 left out" in str(found)
    kept = replace(data, items=tuple(one for i, one in enumerate(data.items) if i not in (2, 6)))
    rest = evaluate(Classification(), model, kept, arms, tmp_path / "rest")
    assert found.rows == rest.rows and whole.n_images == {"test": 7}


def test_a_set_without_a_readable_image_is_refused(model, tmp_path):
    data = images_of(int, 2)

    def broken():
        raise DataError("empty")

    items = tuple(replace(one, read_image=broken) for one in data.items)
    with pytest.raises(ArtifactError, match="no image of the test set was recorded"):
        evaluate(Classification(), model, replace(data, items=items), {}, tmp_path)


def test_an_activation_that_is_not_finite_stops_the_run(model, tmp_path):
    bad = classifier()
    with torch.no_grad():
        bad.source.head.bias[0] = float("nan")
    with pytest.raises(ContractError, match="NaN or inf"):
        evaluate(Classification(), bad, images_of(int, 2), {}, tmp_path)


def test_the_result_is_written_as_json_markdown_and_latex(model, tmp_path):
    arms = standard_arms(model, NEURONS, ["register", "random"], n_draws=2)
    found = evaluate(Classification(), model, images_of(int), arms, tmp_path)
    found.save(tmp_path)
    body = json.loads((tmp_path / "result.json").read_text())
    assert [row["arm"] for row in body["rows"]][::2] == ["intact", "register", "random"]
    assert body["evaluation"] == {"evaluation": "Classification"}
    assert body["arms"]["register"]["intervention"] == arms["register"].to_dict()
    assert body["data"]["test"]["n_images"] == 7 and "torch" in body["versions"]
    assert "mean and 2.5 to 97.5 percentile of their draws" in (tmp_path / "table.md").read_text()
    assert r"top-1 \% & top-5 \%" in (tmp_path / "table.tex").read_text()


def test_a_damaged_chunk_is_told_with_its_file(tmp_path):
    file = tmp_path / "test-000000.safetensors"
    file.write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=f"{file} is no chunk of records"):
        header(file)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, t: evaluate(Classification(), m, images_of(Mask), {}, t), "annotated with Mask"),
        (
            lambda m, t: evaluate(Classification(), m, {"train": images_of(int)}, {}, t),
            r"found the image sets \['train'\]; it takes \['test'\]",
        ),
        (
            lambda m, t: evaluate(
                Classification(), classifier(num_classes=0), images_of(int), {}, t
            ),
            "returns no logits",
        ),
        (
            lambda m, t: evaluate(Classification(), m, images_of(int), {"intact": Empty()}, t),
            "name 'intact' is taken",
        ),
        (
            lambda m, t: evaluate(Classification(), m, images_of(int), {"r": {"a": Empty()}}, t),
            "fewer than 2 show no spread",
        ),
        (
            lambda m, t: evaluate(
                Classification(), m, images_of(int), standard_arms(m, NEURONS, ["text-move"]), t
            ),
            "only the typographic evaluation",
        ),
        (lambda m, t: standard_arms(m, NEURONS, ["registers"]), r"No arms \['registers'\]"),
        (lambda m, t: standard_arms(m, NEURONS, ["bias"]), "other ones than those evaluated"),
    ],
)
def test_what_does_not_fit_is_refused(model, tmp_path, call, words):
    with pytest.raises(DataError, match=words):
        call(model, tmp_path)


def test_an_arm_of_another_model_is_refused(model, tmp_path):
    with pytest.raises(InterventionError, match="Layer 9"):
        evaluate(Classification(), model, images_of(int, 2), {"z": ZeroNeurons({9: [1]})}, tmp_path)
