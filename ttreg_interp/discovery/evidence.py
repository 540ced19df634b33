"""What supports a list of register neurons: held-out images, controls, single neurons, resampling."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.discovery.config import Score
from ttreg_interp.discovery.observe import Observer, draw_ordinary
from ttreg_interp.discovery.scores import STATISTICS, ChosenTokens, NeuronScores, layer_statistics
from ttreg_interp.discovery.stream import Batch
from ttreg_interp.discovery.trial import ArmResult, Trial
from ttreg_interp.errors import InterventionError
from ttreg_interp.interventions.base import Intervention
from ttreg_interp.interventions.move import CopyRegisterValuesTo
from ttreg_interp.interventions.neuron_set import NeuronSet
from ttreg_interp.interventions.neurons import ZeroNeurons
from ttreg_interp.interventions.registers import ExtraTokens, TestTimeRegister
from ttreg_interp.metrics.intervals import controls_interval, mean_interval

CONTROL_DRAWS = 5
"""Draws of random neurons for each control."""
MOST_SINGLE = 16
"""Single neurons whose effect is measured: the best ones."""
RESAMPLES = 1000
"""Bootstrap resamples of the images."""


def held_out_arms(trial: Trial, neurons: NeuronSet, seed: int) -> dict[str, Any]:
    """Held-out images under the register, and under its controls.

    Args:
        trial: the held-out images.
        neurons: the register neurons.
        seed: of the random neurons.

    Returns:
        For every arm the outliers per image, the share of outliers left, and the drift of the
        output; means with 95 % intervals over images, or over draws for random neurons.
    """
    arms = {
        "intact": _arm(trial, ArmResult(trial.outliers, torch.zeros_like(trial.outliers)), seed),
        "register": _arm(trial, trial.run(TestTimeRegister(neurons)), seed),
        "zeroed": _arm(trial, trial.run(ZeroNeurons(neurons)), seed),
        "token only": _arm(trial, trial.run(ExtraTokens()), seed),
    }
    d_mlp = trial.model.cfg.d_mlp
    controls: dict[str, Callable[[int], Intervention]] = {
        "random neurons": lambda draw: TestTimeRegister(neurons.matched_random(draw, d_mlp)),
        "values in random neurons": lambda draw: _handed_over(
            neurons, neurons.matched_random(draw, d_mlp)
        ),
    }
    for name, control in controls.items():
        arms[name] = _draws(trial, control, seed)
    return {"n_images": trial.n_images, "arms": arms}


def _handed_over(neurons: NeuronSet, others: NeuronSet) -> Intervention:
    """Other neurons take over the activation. If its size made the outliers, they would stay.

    Source: arXiv 2506.08010, Fig. 24.
    """
    return CopyRegisterValuesTo(neurons, others) + ZeroNeurons(neurons)


def _arm(trial: Trial, result: ArmResult, seed: int) -> dict[str, Any]:
    described: dict[str, Any] = {"outliers_left": trial.left(result)}
    for name, values in (("outliers_per_image", result.outliers), ("drift", result.drift)):
        described[name] = _mean(values, seed)
    return described


def _mean(values: Float[Tensor, " image"], seed: int) -> dict[str, Any] | float:
    """The mean with its interval; one image has none around it."""
    return mean_interval(values, seed).to_dict() if len(values) > 1 else float(values.mean())


def _draws(trial: Trial, control: Callable[[int], Intervention], seed: int) -> dict[str, Any]:
    try:
        results = [trial.run(control(seed + draw)) for draw in range(CONTROL_DRAWS)]
    except InterventionError as error:  # a layer of which most neurons are in the list
        return {"skipped": str(error)}
    left = controls_interval([trial.left(result) for result in results])
    drift = controls_interval([float(result.drift.mean()) for result in results])
    return {"outliers_left": left.to_dict(), "drift": drift.to_dict(), "draws": CONTROL_DRAWS}


def single_neurons(trial: Trial, neurons: list[tuple[int, int]], seed: int) -> list[dict[str, Any]]:
    """The effect of each neuron alone, and of all but it; the best `MOST_SINGLE` of the list."""
    rows, best = [], neurons[:MOST_SINGLE]
    for pair, alone in zip(best, trial.effects(best), strict=True):
        rest = trial.run(trial.register([other for other in neurons if other != pair]))
        rows.append(
            {
                "layer": pair[0],
                "neuron": pair[1],
                "shrinkage": _mean(alone.shrinkage, seed),
                "left_by_it_alone": alone.outliers_left,
                "left_without_it": trial.left(rest),
                "drift_without_it": float(rest.drift.mean()),
            }
        )
    return rows


def arms_of_evidence(k: int) -> int:
    """How often the held-out images are run, at most, for k neurons."""
    return 3 + 2 * CONTROL_DRAWS + 1 + 2 * min(k, MOST_SINGLE)


def image_statistics(
    observer: Observer, batches: Iterable[Batch], pairs: list[tuple[int, int]], seed: int
) -> dict[str, Float[Tensor, "image candidate"]]:
    """The statistics of a few neurons, image by image, of the images that have outliers."""
    by_layer: dict[int, list[int]] = {}
    for layer, neuron in pairs:
        by_layer.setdefault(layer, []).append(neuron)
    order = [(layer, neuron) for layer in by_layer for neuron in by_layer[layer]]
    place = [order.index(pair) for pair in pairs]
    found: dict[str, list[Tensor]] = {name: [] for name in STATISTICS}
    for batch in batches:
        seen = observer(batch)
        some = seen.outliers.any(dim=1)
        drawn = draw_ordinary(seen.outliers, seen.layout, batch.index, seed)
        tokens = ChosenTokens.of(seen, drawn)
        layers = {
            layer: layer_statistics(observer.model.blocks[layer].mlp, seen, tokens, layer)
            for layer in by_layer
        }
        for name in STATISTICS:
            columns = [layers[layer][name][some][:, by_layer[layer]] for layer in by_layer]
            found[name].append(torch.cat(columns, dim=1)[:, place].cpu().double())
    return {name: torch.cat(values) for name, values in found.items()}


def stability(
    statistics: dict[str, Float[Tensor, "image candidate"]],
    scores: NeuronScores,
    pairs: list[tuple[int, int]],
    score: Score,
    k: int,
    reach: int,
    seed: int,
) -> list[dict[str, float]]:
    """How often each neuron taken stays among the best when images are resampled.

    Args:
        statistics: of the candidates, image by image.
        scores: where they come from.
        pairs: the candidates: the neurons taken, then the next best.
        score: what ranks them.
        k: how many are taken.
        reach: place of the last of them in the ranking; more than k if others are passed over.
        seed: of the resampling.

    Returns:
        For each of them: share of `RESAMPLES` resamples in which it is among the first `reach`,
        and the 95 % percentile interval of its score.
    """
    n_images = len(statistics["abs"])
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(n_images, (RESAMPLES, n_images), generator=generator)
    weights = torch.zeros(RESAMPLES, n_images, dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    means = {name: weights @ values / n_images for name, values in statistics.items()}
    norms = torch.stack([scores.row_norms[scores.layers.index(i), n] for i, n in pairs])
    norms = norms.expand(RESAMPLES, -1)  # a resample takes the place of a layer
    resampled = NeuronScores(means, range(0), norms, scores.direction, 0.0, n_images).score(score)
    ranks = resampled.argsort(dim=1, descending=True).argsort(dim=1)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = resampled.quantile(ends, dim=0)
    stays = (ranks[:, :k] < reach).double().mean(dim=0)
    rows = zip(stays.tolist(), low[:k].tolist(), high[:k].tolist(), strict=True)
    return [{"stays": stay, "score_low": a, "score_high": b} for stay, a, b in rows]
