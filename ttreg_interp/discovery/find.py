"""find_register_neurons: from a model and images to register neurons with their evidence."""

from pathlib import Path
from typing import Any

from ttreg_interp.discovery.calibrate import (
    NEURON_SHARE,
    GreedyCurve,
    Trial,
    clear_gap,
    search_range,
)
from ttreg_interp.discovery.config import FindConfig
from ttreg_interp.discovery.observe import Observer
from ttreg_interp.discovery.outliers import OutlierReport, shown
from ttreg_interp.discovery.priors import read_priors
from ttreg_interp.discovery.register_neurons import RegisterNeurons
from ttreg_interp.discovery.scores import read_scores, score_neurons
from ttreg_interp.discovery.stream import ImageStream, held_out
from ttreg_interp.discovery.survey import detect, survey_norms
from ttreg_interp.hooked.load import weights_hash
from ttreg_interp.interventions.neuron_set import NeuronSet

MAX_HELD_OUT = 32
"""Held-out images that are kept in memory for calibration."""
MAX_K = 512
"""Most neurons that calibration tries."""


def find_register_neurons(
    model: Any,
    images: Any,
    config: FindConfig | None = None,
    *,
    progress: bool = False,
    checkpoint: str | Path | None = None,
) -> RegisterNeurons:
    config = (config or FindConfig()).resolved()
    stream = ImageStream.for_model(model, images, config.batch_size, config.workers)
    scoring = [b.only(~held_out(b.index, config.held_out)) for b in stream]
    survey = survey_norms(model, scoring, config.candidates or "patches")
    detection = detect(model, survey, config)
    layers = range(0, detection.detect_layer + 1)
    observer = Observer(model, detection, layers, config.sparsity_filter)
    sums = score_neurons(observer, shown(scoring, "scores", progress), config.seed)
    report = OutlierReport.of(model, survey, detection, read_priors(sums))
    if not report.has_outliers:
        return RegisterNeurons(NeuronSet(), model=model.cfg.model_name, caveats=(report.summary(),))
    scores = read_scores(model, layers, sums)
    searched = search_range(model, config, scores)
    ranking = scores.ranking(config.score, searched)
    held = [b.only(held_out(b.index, config.held_out)).pixels for b in stream]
    trial = Trial.of(model, detection, held[:4])
    curve = GreedyCurve(trial, ranking)
    k = config.top_k
    if k is None:
        k = max(
            curve.least_k(config.suppress_to, 64) or 0,
            clear_gap(ranking[:MAX_K], NEURON_SHARE * scores.excess),
        )
    return RegisterNeurons(
        NeuronSet.of([row[:2] for row in ranking[:k]]),
        ranking=tuple(ranking[: max(100, 2 * k)]),
        threshold=detection.threshold.value,
        detect_layer=detection.detect_layer,
        emerges_at=detection.emerges_at,
        model=model.cfg.model_name,
        weights_hash=weights_hash(model.source),
        image_size=model.image_size,
        architecture={
            "layers": model.cfg.n_layers,
            "mlp_hidden": model.cfg.d_mlp,
            "d_model": model.cfg.d_model,
        },
        provenance={
            "config": config.to_dict(),
            "outliers": report.to_dict(),
            "share": scores.layer_share().tolist(),
            "range": [searched.start, searched.stop],
            "images_digest": stream.digest(),
        },
        evidence={"curve": [p.to_dict() for p in curve.points]},
    )
