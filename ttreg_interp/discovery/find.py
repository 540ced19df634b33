"""find_register_neurons: from a model and images to register neurons with their evidence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ttreg_interp.discovery.agreement import published_agreement
from ttreg_interp.discovery.calibrate import Ranking
from ttreg_interp.discovery.checkpoint import RunState
from ttreg_interp.discovery.config import FindConfig
from ttreg_interp.discovery.evidence import (
    arms_of_evidence,
    held_out_arms,
    image_statistics,
    single_neurons,
    stability,
)
from ttreg_interp.discovery.observe import Observer
from ttreg_interp.discovery.outliers import OutlierReport
from ttreg_interp.discovery.priors import read_priors
from ttreg_interp.discovery.progress import counted, shown
from ttreg_interp.discovery.provenance import architecture_of, provenance_of
from ttreg_interp.discovery.recursion import search_again
from ttreg_interp.discovery.register_neurons import RegisterNeurons
from ttreg_interp.discovery.scoring import ScoringRun, score
from ttreg_interp.discovery.search import Search, search, with_held_out
from ttreg_interp.discovery.survey import Detection
from ttreg_interp.discovery.weights import weight_check
from ttreg_interp.interventions.neuron_set import NeuronSet

KEPT_ROWS = 200
"""Rows of the ranking that the artefact keeps, or twice the neurons chosen if that is more."""


def find_register_neurons(
    model: Any,
    images: Any,
    config: FindConfig | None = None,
    *,
    progress: bool = False,
    checkpoint: str | Path | None = None,
) -> RegisterNeurons:
    """Find the neurons that make a model's outlier tokens, with evidence.

    1. Survey: norms of all layers over the first images give threshold and detection layer.
    2. Scores: one pass over the images that are not held out; see `NeuronScores.score`.
    3. Calibration on held-out images: layers to search, and as few neurons as suppress the outliers.
    4. Evidence on held-out images: controls, single neurons, resampling, weights.

    Under torchrun (see `torchrun()`) each process scores its share of the batches.

    Args:
        model: a HookedViT.
        images: a tensor of pixels [image, channel, height, width], `tt.images(...)`, or an iterable
            of pixel batches that can be read more than once.
        config: what not to find from the images.
        progress: show a bar.
        checkpoint: file for the running sums: written now and then, taken up if it is there. The
            result is the same to the last bit, stopped or not.

    Returns:
        The register neurons; an empty list, whose caveats say why, if there are no outliers.

    Raises:
        DataError: no images, or an iterator.
        ContractError: NaN or inf in the activations; names the layer.
        ArtifactError: the checkpoint belongs to another run.

    Source:
        arXiv 2506.08010, Algorithm 1 and A.4.

    Example:
        >>> from ttreg_interp.hooked import HookedViT
        >>> from ttreg_interp.testbed.photographs import photograph_tensor
        >>> from ttreg_interp.testbed.planted import planted_vit
        >>> vit = planted_vit(depth=6, image_size=112)
        >>> found = find_register_neurons(HookedViT.wrap(vit.module), photograph_tensor(112))
        >>> found.by_layer() == vit.truth
        True
    """
    run = ScoringRun.of(model, images, config or FindConfig(), progress)
    return conclude(run, score(run, checkpoint))


def conclude(run: ScoringRun, state: RunState) -> RegisterNeurons:
    """From the sums over all images to the artefact."""
    report = OutlierReport.of(run.model, state.survey, state.detection, read_priors(state.sums))
    if not state.sums.whole("images"):
        evidence = {"outliers": report.to_dict()}
        return _artefact(run, report, evidence=evidence, caveats=(report.summary(),))
    first = search(run, state.detection, state.sums)
    again = search_again(run, first.choice.neurons)
    chosen = [*first.choice.chosen, *(row for found in again for row in found.ranking)]
    rows = _kept_rows(chosen, first.ranking)
    evidence = _account(report, first) | {"recursions": [found.to_dict() for found in again]}
    if run.config.evidence and chosen:
        compared = rows[: len(chosen) + max(len(chosen), 50)]
        evidence |= _evidence(run, state.detection, first, compared, len(chosen))
    return _artefact(
        run,
        report,
        neurons=NeuronSet.of([row[:2] for row in chosen]),
        ranking=tuple(rows),
        evidence=evidence,
        caveats=first.caveats,
    )


def _account(report: OutlierReport, first: Search) -> dict[str, Any]:
    """How the choices were made."""
    shares = zip(first.scores.layers, first.scores.layer_share().tolist(), strict=True)
    return {
        "outliers": report.to_dict(),
        "searched_layers": [first.searched.start, first.searched.stop - 1],
        "layer_share": {str(layer): share for layer, share in shares},
        "excess": first.scores.excess,
        "curve": [point.to_dict() for point in first.choice.curve],
        "outcome": first.choice.outcome.to_dict(),
    }


def _evidence(
    run: ScoringRun, detection: Detection, first: Search, candidates: Ranking, k: int
) -> dict[str, Any]:
    """Evidence for the first k candidates, the others being the next best."""
    pairs = [row[:2] for row in candidates]
    neurons = NeuronSet.of(pairs[:k])
    layers = range(min(layer for layer, _ in pairs), max(layer for layer, _ in pairs) + 1)
    observer = Observer(run.model, detection, layers, run.config.sparsity)
    seed = run.config.seed
    with counted("evidence", run.progress, arms_of_evidence(k) * first.trial.n_images) as tick:
        trial = replace(first.trial, tick=tick)
        if layers.start < trial.first_layer:  # of neurons that a further search found
            trial, _ = with_held_out(run, replace(trial, first_layer=layers.start))
        held_out = held_out_arms(trial, neurons, seed)
        single = single_neurons(trial, pairs[:k], seed)
    sample = shown(run.sample(), "stability", run.progress)
    statistics = image_statistics(observer, sample, pairs, seed)
    assert run.config.score is not None
    taken = len(first.choice.chosen)  # a further search has scores of its own
    return {
        "held_out": held_out,
        "single": single,
        "stability": stability(
            statistics, first.scores, pairs, run.config.score, taken, first.reach, seed
        ),
        "weights": weight_check(run.model, neurons, first.scores.direction, seed),
        "published": published_agreement(run.model, neurons),
    }


def _kept_rows(chosen: Ranking, ranking: Ranking) -> Ranking:
    """The chosen neurons, then the next best."""
    taken = {row[:2] for row in chosen}
    n_rows = max(KEPT_ROWS, 2 * len(chosen))
    rest = [row for row in ranking[:n_rows] if row[:2] not in taken]
    return [*chosen, *rest][:n_rows]


def _artefact(run: ScoringRun, report: OutlierReport, **fields: Any) -> RegisterNeurons:
    model = run.model
    return RegisterNeurons(
        neurons=fields.pop("neurons", NeuronSet()),
        threshold=report.threshold,
        detect_layer=report.detect_layer,
        emerges_at=report.emerges_at,
        model=model.cfg.model_name,
        weights_hash=run.weights,
        image_size=report.image_size,
        architecture=architecture_of(model),
        provenance=provenance_of(run, report),
        **fields,
    )
