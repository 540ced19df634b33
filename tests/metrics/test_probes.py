"""Linear probes: the optimum that scikit-learn and torch find, and test images that choose nothing."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ttreg_interp.errors import DataError
from ttreg_interp.metrics.classification import Labelled
from ttreg_interp.metrics.probes import LogisticProbe, SGDProbe, linear_probe

from .test_classification import labelled

TRAIN, TEST = labelled(0, images=120), labelled(1, images=60)
PROBES = [LogisticProbe(iterations=50), SGDProbe(epochs=5, batch_size=32)]


def augmented(data: Labelled) -> Labelled:
    return Labelled(torch.cat([data.features, torch.ones(len(data), 1)], 1).double(), data.labels)


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
def test_logistic_regression_finds_the_minimum_that_scikit_learn_finds(penalty):
    data = augmented(TRAIN)
    weight = LogisticProbe().fit(data, 4, (penalty,), seed=0)[0]
    reference = LogisticRegression(C=1 / (penalty * len(data)), tol=1e-8, max_iter=2000)
    reference.fit(TRAIN.features.double(), TRAIN.labels)
    expected = torch.from_numpy(reference.coef_).T
    torch.testing.assert_close(weight[:-1], expected, atol=2e-3, rtol=2e-3)


def test_a_warm_start_does_not_move_the_minimum():
    data, grid = augmented(TRAIN), (1.0, 1e-1, 1e-2)
    together = LogisticProbe().fit(data, 4, grid, seed=0)
    for weight, penalty in zip(together, grid, strict=True):
        alone = LogisticProbe().fit(data, 4, (penalty,), seed=0)[0]
        torch.testing.assert_close(weight, alone, atol=1e-4, rtol=1e-3)


def test_sgd_takes_the_steps_that_torch_takes():
    data, epochs, rate = augmented(TRAIN), 8, 0.5
    linear = torch.nn.Linear(7, 4, bias=False, dtype=torch.float64)
    torch.nn.init.zeros_(linear.weight)
    optimiser = torch.optim.SGD(linear.parameters(), lr=rate * 120 / 256, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=epochs)
    for _ in range(epochs):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(linear(data.features), data.labels).backward()
        optimiser.step()
        schedule.step()
    weights = SGDProbe(epochs=epochs).fit(data, 4, (0.1, rate), seed=0)
    torch.testing.assert_close(weights[1], linear.weight.T.detach())


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_reads_out_what_is_linear_in_the_features(probe):
    result = linear_probe(TRAIN, TEST, probe)
    assert result.accuracy.estimate > 0.6
    shuffled = Labelled(TRAIN.features, TRAIN.labels[torch.randperm(120)])
    assert linear_probe(shuffled, TEST, probe).accuracy.estimate < 0.5


@pytest.mark.parametrize("probe", PROBES)
def test_test_labels_choose_nothing(probe):
    generator = torch.Generator().manual_seed(0)
    other = Labelled(TEST.features, TEST.labels[torch.randperm(60, generator=generator)])
    mine, theirs = linear_probe(TRAIN, TEST, probe), linear_probe(TRAIN, other, probe)
    assert mine.chosen == theirs.chosen
    assert torch.equal(mine.held_out_accuracy, theirs.held_out_accuracy)


@pytest.mark.parametrize("probe", PROBES)
def test_every_seed_has_its_own_result_and_the_same_each_time(probe):
    first, again = linear_probe(TRAIN, TEST, probe), linear_probe(TRAIN, TEST, probe)
    assert torch.equal(first.correct, again.correct)
    assert first.correct.shape == (3, 60)
    assert len(first.chosen) == len(first.per_seed) == 3
    assert first.accuracy.estimate == pytest.approx(sum(first.per_seed) / 3)
    assert not torch.equal(first.held_out_accuracy[0], first.held_out_accuracy[1])


def test_the_chosen_value_is_the_best_on_held_out_images():
    result = linear_probe(TRAIN, TEST, PROBES[0])
    best = result.held_out_accuracy.argmax(dim=1)
    assert result.chosen == tuple(result.probe.grid[value] for value in best)


def test_held_out_images_are_not_fitted():
    """Noise of as many dimensions as images is learnt by heart; held-out images stay at chance."""
    noise = torch.randn(60, 80, generator=torch.Generator().manual_seed(0))
    data = Labelled(noise, torch.arange(60) % 4)
    result = linear_probe(data, data, LogisticProbe(grid=(1e-2, 1e-3)))
    assert result.accuracy.estimate == 1.0
    assert result.held_out_accuracy.mean() < 0.5


def test_a_choice_at_the_edge_of_the_grid_is_told():
    """A learning rate of 0 learns nothing, so the other one is chosen."""
    inner = linear_probe(TRAIN, TEST, SGDProbe(grid=(0.0, 0.1, 0.0), seeds=(0,)))
    outer = linear_probe(TRAIN, TEST, SGDProbe(grid=(0.0, 0.1), seeds=(0,)))
    assert (inner.chosen, outer.chosen) == ((0.1,), (0.1,))
    assert (inner.at_edge, outer.at_edge) == (False, True)


def test_one_image_a_class_is_enough_when_nothing_is_to_be_chosen():
    shot = TRAIN[torch.arange(4)]
    result = linear_probe(shot, TEST, LogisticProbe(grid=(0.01,), seeds=(0,)))
    assert result.accuracy.estimate > 0.3
    assert result.held_out_accuracy.isnan().all()
    assert not result.at_edge


def test_standardising_makes_the_units_of_a_dimension_irrelevant():
    scale = torch.tensor([1.0, 1e3, 1.0, 1e-3, 1.0, 1.0])
    scaled = [Labelled(data.features * scale - 5, data.labels) for data in (TRAIN, TEST)]
    probe = LogisticProbe(grid=(0.1,), seeds=(0,))
    assert linear_probe(*scaled, probe).per_seed == linear_probe(TRAIN, TEST, probe).per_seed
    plain = LogisticProbe(grid=(0.1,), seeds=(0,), standardise=False)
    assert linear_probe(*scaled, plain).per_seed != linear_probe(TRAIN, TEST, plain).per_seed


def test_a_dimension_that_never_varies_is_harmless():
    data = [
        Labelled(d.features.clone().index_fill_(1, torch.tensor(3), 9.0), d.labels)
        for d in (TRAIN, TEST)
    ]
    assert linear_probe(*data, PROBES[0]).accuracy.estimate > 0.6


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_probe_can_be_fitted_where_models_are_run(mode):
    expected = linear_probe(TRAIN, TEST, PROBES[0])
    with mode():
        data = [Labelled(data.features.half(), data.labels) for data in (TRAIN, TEST)]
        result = linear_probe(*data, PROBES[0])
    assert result.accuracy.estimate == pytest.approx(expected.accuracy.estimate, abs=0.05)


def test_a_class_never_seen_counts_as_wrong():
    known = TRAIN[(TRAIN.labels < 3).nonzero()[:, 0]]
    result = linear_probe(known, TEST, LogisticProbe(grid=(0.01,), seeds=(0,)))
    assert not result.correct[:, TEST.labels == 3].any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LogisticProbe(grid=()), "one value or more, none negative; found ()"),
        (lambda: SGDProbe(grid=(0.1, -1.0)), "none negative"),
        (lambda: SGDProbe(seeds=()), "Found no seed"),
        (lambda: SGDProbe(held_out=1.0), "share between 0 and 1; found 1.0"),
        (
            lambda: linear_probe(TRAIN, Labelled(TEST.features[:, :2], TEST.labels), PROBES[0]),
            "training features of 6 dimensions and test features of 2",
        ),
        (
            lambda: linear_probe(TRAIN[torch.arange(2)], TEST, PROBES[0]),
            "2 training images cannot hold out a share of 0.2",
        ),
        (
            lambda: Labelled(TEST.features * math.nan, TEST.labels),
            "features of shape .* NaN",
        ),
    ],
)
def test_a_probe_that_cannot_be_fitted_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
