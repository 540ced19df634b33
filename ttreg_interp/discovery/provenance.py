"""Where an artefact comes from: what one needs to make it again."""

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ttreg_interp._version import __version__
from ttreg_interp.discovery.outliers import OutlierReport

_PACKAGES = ("torch", "transformer-lens", "timm", "open-clip-torch", "transformers")


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


def versions() -> dict[str, str]:
    """Of this package, of Python and of the libraries that the numbers depend on."""
    found = {"ttreg_interp": __version__, "python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
