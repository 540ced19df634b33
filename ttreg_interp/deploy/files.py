"""How deployed files are written: whole or not at all, and saying where they come from."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ttreg_interp.errors import ArtifactError
from ttreg_interp.hooked import HookedViT, weights_hash
from ttreg_interp.interventions import Intervention
from ttreg_interp.provenance import versions


@contextmanager
def draft_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, on the same disk, gone afterwards.

    Raises:
        ArtifactError: the folder of `target` does not exist.
    """
    if not target.parent.is_dir():
        raise ArtifactError(f"No folder {target.parent} to write {target.name} in. Make it first.")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        yield Path(folder)


def provenance(model: HookedViT, intervention: Intervention) -> dict[str, Any]:
    """Intervention, model, weights hash and versions, as JSON knows them."""
    return {
        "intervention": intervention.to_dict(),
        "described": intervention.describe(),
        "model": model.cfg.model_name,
        "family": model.parts.family,
        "image_size": list(model.image_size),
        "weights_hash": weights_hash(model.source),
        "versions": versions(),
    }
