"""Tables on disk: a probe gives to the bit what it gives on tensors, and never asks for more than a piece."""

from collections.abc import Callable

import pytest
import torch

from ttreg_interp.metrics import rows
from ttreg_interp.metrics.classification import Labelled, knn_votes
from ttreg_interp.metrics.dense_probes import (
    DenseProbe,
    DepthHead,
    LabelledPatches,
    depth_probe,
    segmentation_probe,
)
from ttreg_interp.metrics.probes import LogisticProbe, SGDProbe, linear_probe
from ttreg_interp.metrics.rows import Chosen, Mapped, Rows, at_hand, chosen, moments, pieces

from .test_classification import labelled
from .test_dense_probes import depths, segments


class OnDisk(Rows):
    """A tensor that is told apart from one in memory, and remembers what was asked of it."""

    def __init__(self, values: torch.Tensor):
        self.values = values
        self.asked: list[int] = []

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    def __getitem__(self, places: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(places))
        return self.values[places]


@pytest.fixture
def small_pieces(monkeypatch) -> Callable[[torch.Tensor, int], None]:
    """Make so many rows of a tensor a piece."""

    def make(table: torch.Tensor, count: int) -> None:
        monkeypatch.setattr(rows, "PIECE", 4 * count * table[0].numel())

    return make


def dense_scores(data: list[LabelledPatches], head: DepthHead | None) -> torch.Tensor:
    probe = DenseProbe(learning_rate=0.1, epochs=2, batch_size=4, seeds=(0, 1))
    if head is None:
        return torch.stack(
            [run.intersection for run in segmentation_probe(*data, 3, probe).overlaps]
        )
    return depth_probe(*data, head, probe).rmse_per_image


@pytest.mark.parametrize("pieces_of", [2, 100])
@pytest.mark.parametrize("head", [None, DepthHead(min_depth=0.5), DepthHead("regression")])
def test_a_dense_probe_of_tables_on_disk_is_that_of_tensors(head, pieces_of, small_pieces):
    data = [(depths if head else segments)(seed) for seed in (0, 1)]
    small_pieces(data[0].features, pieces_of)
    stored = [LabelledPatches(OnDisk(d.features), OnDisk(d.target)) for d in data]
    assert torch.equal(dense_scores(stored, head), dense_scores(data, head))
    for part in stored:
        assert max(part.features.asked) <= max(pieces_of, 4) or pieces_of > 12


@pytest.mark.parametrize("pieces_of", [7, 1000])
@pytest.mark.parametrize(
    "probe",
    [LogisticProbe(grid=(0.1, 0.01), seeds=(0, 1)), SGDProbe(grid=(0.1, 0.5), batch_size=16)],
)
def test_a_linear_probe_of_tables_on_disk_is_that_of_tensors(probe, pieces_of, small_pieces):
    data = [labelled(0, images=60), labelled(1, images=30)]
    small_pieces(data[0].features, pieces_of)
    stored = [Labelled(OnDisk(d.features), d.labels) for d in data]
    mine, theirs = linear_probe(*stored, probe), linear_probe(*data, probe)
    assert torch.equal(mine.correct, theirs.correct) and mine.chosen == theirs.chosen
    assert torch.equal(mine.held_out_accuracy, theirs.held_out_accuracy)
    assert max(stored[0].features.asked) <= max(pieces_of, 16) or pieces_of == 1000


@pytest.mark.parametrize("count", [1, 7, 60])
def test_loss_and_gradient_add_up_over_pieces(count, small_pieces):
    """The minimum does not depend on how images are read."""
    data = labelled(0, images=60)
    data = Labelled(data.features.double(), data.labels)
    whole = LogisticProbe().fit(data, 4, (0.01,), seed=0)
    small_pieces(data.features, count)
    torch.testing.assert_close(
        LogisticProbe().fit(data, 4, (0.01,), seed=0), whole, atol=1e-5, rtol=0
    )


def test_votes_of_a_bank_on_disk_are_those_of_tensors(small_pieces):
    bank, queries = labelled(0), labelled(1)
    expected = knn_votes(bank, queries.features, k=9)
    small_pieces(bank.features, 4)
    stored = knn_votes(Labelled(OnDisk(bank.features), bank.labels), OnDisk(queries.features), k=9)
    torch.testing.assert_close(stored, expected)


@pytest.mark.parametrize("count", [1, 3, 5, 40])
def test_moments_of_pieces_are_those_of_the_whole(count, small_pieces):
    values = 100 + torch.randn(40, 3, 5, generator=torch.Generator().manual_seed(0))
    values[..., 2] = 7.0
    small_pieces(values, count)
    spread, centre = moments(OnDisk(values))
    flat = values.flatten(end_dim=1).double()
    torch.testing.assert_close(centre, flat.mean(dim=0))
    expected = flat.std(dim=0, correction=0)
    expected[2] = 1.0  # so that what never varies is not divided by 0
    torch.testing.assert_close(spread, expected)


def test_rows_are_chosen_and_mapped_when_they_are_asked_for():
    values = torch.arange(12.0).view(6, 2)
    disk = OnDisk(values)
    some = Mapped(chosen(chosen(disk, torch.tensor([5, 1, 3])), torch.tensor([2, 0])), torch.neg)
    assert not disk.asked and isinstance(chosen(disk, torch.tensor([0])), Chosen)
    assert some.shape == (2, 2) and some.dtype == torch.float32 and some.device.type == "cpu"
    assert torch.equal(some[torch.tensor([1, 0])], -values[[5, 3]])
    assert torch.equal(at_hand(some), -values[[3, 5]])


def test_pieces_are_all_rows_in_order(small_pieces):
    values = torch.zeros(10, 3)
    small_pieces(values, 4)
    assert [places.tolist() for places in pieces(OnDisk(values))] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]
    assert at_hand(values) is values
