"""Linear probes on frozen features: a grid chosen on held-out training images, several seeds.

The test images choose nothing: each seed holds out its own part of the training images, picks the
grid value that classifies these best, fits that value again on all training images, and only then
looks at the test images. Features are read a piece or a minibatch at a time, so that memory does not
grow with the images.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from math import cos, pi
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from ttreg_interp.errors import DataError
from ttreg_interp.metrics.classification import Labelled, topk_correct
from ttreg_interp.metrics.intervals import Interval, mean_interval
from ttreg_interp.metrics.rows import Mapped, Table, at_hand, moments, pieces

Standardised: TypeAlias = tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]
"""Spread and centre of every dimension."""


@dataclass(frozen=True)
class Probe(ABC):
    """A way to fit a linear classifier for every value of a grid."""

    grid: tuple[float, ...]
    """Values to choose from; with a single one nothing is held out."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One probe per seed, which draws the held-out images (and the batches of SGD)."""
    held_out: float = 0.2
    """Share of the training images on which the grid value is chosen."""
    standardise: bool = True
    """Bring every dimension to zero mean and unit variance over the training images, so that a few
    dimensions of huge activations neither escape regularisation nor stall the optimiser."""

    def __post_init__(self) -> None:
        if not self.grid or min(self.grid) < 0:
            raise DataError(f"A grid holds one value or more, none negative; found {self.grid}.")
        if not self.seeds:
            raise DataError("Found no seed; give one or more.")
        if not 0 < self.held_out < 1:
            raise DataError(f"held_out is a share between 0 and 1; found {self.held_out}.")

    @abstractmethod
    def fit(
        self, train: Labelled, classes: int, grid: tuple[float, ...], seed: int
    ) -> Float[Tensor, "value d_model class"]:
        """One weight matrix per grid value; the last feature is the constant 1."""


@dataclass(frozen=True)
class LogisticProbe(Probe):
    """Multinomial logistic regression by L-BFGS; the grid holds L2 penalties.

    It minimises mean cross-entropy + penalty/2 ||W||_F^2, biases unpenalised; scikit-learn's
    `C` is 1 / (penalty * images). Loss and gradient add up over pieces of the images.
    """

    grid: tuple[float, ...] = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    """Penalties; each fit starts where the one before ended."""
    iterations: int = 200
    """At most so many L-BFGS steps per penalty."""

    def fit(
        self, train: Labelled, classes: int, grid: tuple[float, ...], seed: int
    ) -> Float[Tensor, "value d_model class"]:
        """See `Probe.fit`; convex, so the seed has no part in it."""
        weight = _zeros(train.features, train.features.shape[1], classes).requires_grad_()
        return torch.stack([self._descend(weight, train, penalty) for penalty in grid])

    def _descend(
        self, weight: Float[Tensor, "d_model class"], train: Labelled, penalty: float
    ) -> Float[Tensor, "d_model class"]:
        """Move the weight to the minimum at this penalty, and return a copy."""
        optimiser = torch.optim.LBFGS(
            [weight], max_iter=self.iterations, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
        )

        def loss() -> Tensor:
            optimiser.zero_grad()
            total = penalty / 2 * weight[:-1].square().sum()
            total.backward()
            for places in pieces(train.features):
                logits = train.features[places] @ weight
                fit = cross_entropy(logits, train.labels[places].long())
                fit = fit * (len(places) / len(train))
                fit.backward()
                total = total.detach() + fit.detach()
            return total

        optimiser.step(loss)
        return weight.detach().clone()


@dataclass(frozen=True)
class SGDProbe(Probe):
    """Linear classifier by SGD with momentum and a cosine schedule; the grid holds learning rates.

    Source:
        The linear evaluation of DINOv2, arXiv 2304.07193, on features instead of augmented images.
    """

    grid: tuple[float, ...] = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 5e-1)
    """Learning rates for a batch of 256; scaled with the batch. All are trained side by side."""
    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 256
    """Images per step."""
    momentum: float = 0.9
    """Share of the last step that is kept."""

    def fit(
        self, train: Labelled, classes: int, grid: tuple[float, ...], seed: int
    ) -> Float[Tensor, "value d_model class"]:
        """See `Probe.fit`; starts at zero, the seed orders the batches."""
        generator = torch.Generator().manual_seed(seed)
        batch_size = min(self.batch_size, len(train))
        weight = _zeros(train.features, len(grid), train.features.shape[1], classes)
        rates = weight.new_tensor(grid)[:, None, None] * batch_size / 256
        velocity = torch.zeros_like(weight)
        steps = self.epochs * -(-len(train) // batch_size)
        step = 0
        for _ in range(self.epochs):
            order = torch.randperm(len(train), generator=generator)
            for images in order.split(batch_size):
                features, labels = train.features[images], train.labels[images]
                gradient = _cross_entropy_gradient(weight, features, labels)
                velocity = self.momentum * velocity + gradient
                weight = weight - rates * (1 + cos(pi * step / steps)) / 2 * velocity
                step += 1
        return weight


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """What a linear probe found, seed by seed."""

    correct: Bool[Tensor, "seed batch"]
    """Whether each test image was classified correctly."""
    chosen: tuple[float, ...]
    """The grid value that each seed chose."""
    held_out_accuracy: Float[Tensor, "seed value"]
    """Accuracy on the held-out images by grid value; NaN where the grid has a single value."""
    probe: Probe
    """Configuration."""

    @property
    def accuracy(self) -> Interval:
        """Mean over seeds, with the interval over test images."""
        return mean_interval(self.correct.double().mean(dim=0))

    @property
    def per_seed(self) -> tuple[float, ...]:
        """Test accuracy of each seed."""
        return tuple(self.correct.double().mean(dim=1).tolist())

    @property
    def at_edge(self) -> bool:
        """Whether a seed chose the first or last of several grid values: a wider grid may do better."""
        edges = (self.probe.grid[0], self.probe.grid[-1])
        return len(self.probe.grid) > 1 and any(value in edges for value in self.chosen)


@torch.inference_mode(False)
@torch.enable_grad()
def linear_probe(train: Labelled, test: Labelled, probe: Probe) -> ProbeResult:
    """Fit a linear classifier on frozen features and test it.

    Args:
        train: training images, also those held out to choose the grid value.
        test: test images; classes that the training images lack count as wrong.
        probe: `LogisticProbe()` or `SGDProbe()`.

    Returns:
        Test correctness by seed and image, and what was chosen.

    Raises:
        DataError: features of different dimensions, or too few images to hold some out.

    Example:
        >>> features = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]] * 5)
        >>> data = Labelled(features, (features[:, 0] > 0).long())
        >>> linear_probe(data, data, LogisticProbe(seeds=(0,))).per_seed
        (1.0,)
    """
    if train.features.shape[1] != test.features.shape[1]:
        raise DataError(
            f"Found training features of {train.features.shape[1]} dimensions and test features of "
            f"{test.features.shape[1]}; give features of one model."
        )
    held_out = round(probe.held_out * len(train))
    if len(probe.grid) > 1 and not 0 < held_out < len(train):
        raise DataError(
            f"{len(train)} training images cannot hold out a share of {probe.held_out}; give more "
            "images, or a grid of a single value."
        )
    classes = max(train.classes, test.classes)
    moved = moments(train.features) if probe.standardise else None
    train, test = _prepared(train, moved), _prepared(test, moved)
    runs = [_run(train, test, probe, classes, seed) for seed in probe.seeds]
    correct, chosen, accuracies = zip(*runs, strict=True)
    return ProbeResult(torch.stack(correct), chosen, torch.stack(accuracies), probe)


def _run(
    train: Labelled, test: Labelled, probe: Probe, classes: int, seed: int
) -> tuple[Bool[Tensor, " batch"], float, Float[Tensor, " value"]]:
    accuracies = torch.full((len(probe.grid),), float("nan"), dtype=torch.float64)
    best = 0
    if len(probe.grid) > 1:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(train), generator=generator)
        cut = round(probe.held_out * len(train))
        # in the order in which they lie on disk, which is many times as fast to read
        rest, others = train[order[:cut].sort().values], train[order[cut:].sort().values]
        weights = probe.fit(others, classes, probe.grid, seed)
        accuracies = torch.stack([_correct(rest, weight).double().mean() for weight in weights])
        best = int((accuracies == accuracies.max()).nonzero()[0])
    value = probe.grid[best]
    weight = probe.fit(train, classes, (value,), seed)[0]
    return _correct(test, weight), value, accuracies.cpu()


def _correct(images: Labelled, weight: Float[Tensor, "d_model class"]) -> Bool[Tensor, " batch"]:
    parts = [
        topk_correct(images.features[places] @ weight, images.labels[places])
        for places in pieces(images.features)
    ]
    return torch.cat(parts).cpu()


def _prepared(images: Labelled, moved: Standardised | None) -> Labelled:
    """Features in float32 or wider, standardised by the training images, with the constant 1 last."""
    features = Mapped(images.features, partial(_augmented, moved))
    return Labelled(at_hand(features), images.labels.to(features.device))


def _augmented(
    moved: Standardised | None, features: Float[Tensor, "batch d_model"]
) -> Float[Tensor, "batch augmented"]:
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    if moved is not None:
        spread, centre = moved
        features = ((features - centre) / spread).to(features.dtype)
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)


def _zeros(features: Table, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=features.dtype, device=features.device)


def _cross_entropy_gradient(
    weight: Float[Tensor, "value d_model class"],
    features: Float[Tensor, "batch d_model"],
    labels: Int[Tensor, " batch"],
) -> Float[Tensor, "value d_model class"]:
    """Of the mean cross-entropy: X^T (softmax(X W) - Y) / images, for each grid value."""
    probabilities = (features @ weight).softmax(dim=-1)
    truth = torch.zeros_like(probabilities[0]).scatter(1, labels[:, None].long(), 1.0)
    return features.T @ (probabilities - truth) / len(features)
