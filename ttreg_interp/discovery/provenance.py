"""Where an artefact comes from: what one needs to make it again."""

from typing import Any

from ttreg_interp.discovery.outliers import OutlierReport
from ttreg_interp.provenance import versions


def architecture_of(model: Any) -> dict[str, int]:
    """Sizes that a list of neurons must fit."""
    cfg = model.cfg
    return {"layers": cfg.n_layers, "mlp_hidden": cfg.d_mlp, "d_model": cfg.d_model}


def provenance_of(run: Any, report: OutlierReport) -> dict[str, Any]:
    """Versions, images, seed and configuration of a scoring run."""
    config = run.config
    return {
        "versions": versions(),
        "images_digest": run.digest,
        "n_images": report.n_images,
        "seed": config.seed,
        "dtype": str(run.model.cfg.dtype).removeprefix("torch."),
        "config": config.to_dict(),
        "source": "ttreg_interp find_register_neurons",
        "selection": (
            f"score {config.score} ({config.semantics}), candidates {config.candidates}, threshold "
            f"{report.rule} at the output of block {report.detect_layer}"
        ),
    }
