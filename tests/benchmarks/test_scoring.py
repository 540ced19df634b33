"""The described loop and the scoring pass agree; runs of shards add up. Nothing here judges a time."""

import json
import signal

import torch

from benchmarks import scale
from benchmarks.scoring import PAIRS, EndToEnd, elapsed, save_jpegs, scoring
from ttreg_interp.hooked import load


@torch.no_grad()
def test_the_described_loop_gives_the_scores_of_the_scoring_pass(tmp_path):
    for work in scoring("tiny", 96).values():
        work()
    model = load("testbed:planted/timm/tiny/0", image_size=96)
    test = EndToEnd.of(model, model, save_jpegs(tmp_path, 6), workers=1)
    scores = {name: work() for name, work in test.arms().items()}
    for slow, fast in PAIRS:
        torch.testing.assert_close(scores[fast].float(), scores[slow], rtol=1e-5, atol=1e-5)
    assert scores["ours"].count_nonzero() > scores["ours, sparsity filter"].count_nonzero() > 0


def test_every_arm_is_timed_on_both_clocks():
    seconds = elapsed({"a": lambda: None, "b": lambda: sum(range(100_000))}, rounds=2)
    assert {name: len(rounds) for name, rounds in seconds.items()} == {"a": 2, "b": 2}
    assert all(one["wall"] > 0 and one["cpu"] >= 0 for one in seconds["b"])


def test_crops_are_told_by_their_number_and_note_the_memory(tmp_path):
    notes = tmp_path / "notes"
    crops = scale.Crops(100, notes)
    again = scale.Crops(100)
    assert all(crops[i].tobytes() == again[i].tobytes() for i in range(32))
    assert len({again[i].tobytes() for i in range(100)}) == 100
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    assert [line["read"] for line in lines] == list(range(2, 33, 2))
    assert all(line["rss_mib"] > 10 for line in lines)


def test_a_process_is_killed_where_it_is_to_be(monkeypatch):
    sent = []
    monkeypatch.setattr(scale.os, "kill", lambda pid, number: sent.append(number))
    crops = scale.Crops(9, kill_after=3)
    for number in range(5):
        _ = crops[number]
    assert sent == [signal.SIGKILL]


def test_shards_add_up_to_one_run(tmp_path):
    config = scale.Config(out=tmp_path, images=1024)
    for shard in (scale.Shard(), scale.Shard(0, 2), scale.Shard(1, 2)):
        scale.score(config, shard)
    found = scale.compared(config)
    assert found["sums_equal"] and found["neuron_files_equal"]
    assert found["neurons_are_the_planted_ones"] and found["images_scored"] == 768
    notes, checkpoint = tmp_path / "0-of-1.jsonl", tmp_path / "0-of-1.safetensors"
    assert scale.memory(notes, checkpoint)["processes"] == 1
