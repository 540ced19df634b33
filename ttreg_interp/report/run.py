"""The run directory: what a report is built from."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ttreg_interp.errors import ArtifactError

SCHEMA = "ttreg_interp.run/1"
"""Of `run.json`."""

RUN_FILE, MAPS_FILE = "run.json", "maps.safetensors"


@dataclass(frozen=True)
class Run:
    """A recorded run: facts as plain values, maps as tensors."""

    info: dict[str, Any]
    """`run.json`: model, arms, images, provenance, and the caller's tables under `summary`."""
    maps: dict[str, Tensor]
    """`maps.safetensors`: `thumbnails` [batch, height, width, channel], and by arm number i
    `{i}.norms` [batch, layer, token], `{i}.exact` and `{i}.tokens` [batch, layer, query, key],
    `{i}.heads` [batch, layer, head, query, key], `{i}.neurons` [batch, neuron, token],
    `{i}.ordinary` [batch, layer, rank] (mean over all neurons of the layers that have mapped ones),
    `{i}.output` [batch, output]; queries and keys as the arm's plan says."""

    def of_arm(self, number: int) -> dict[str, Tensor]:
        """The maps of one arm, by kind."""
        start = f"{number}."
        return {
            name.removeprefix(start): map_
            for name, map_ in self.maps.items()
            if name.startswith(start)
        }

    def save(self, folder: Path | str) -> Path:
        """Write both files, each whole or not at all; `run.json` last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{MAPS_FILE}.{os.getpid()}"
        part.write_bytes(save({name: map_.contiguous() for name, map_ in self.maps.items()}))
        part.replace(folder / MAPS_FILE)
        write_whole(folder / RUN_FILE, json.dumps(self.info, indent=1, allow_nan=False))
        return folder

    @classmethod
    def load(cls, folder: Path | str) -> "Run":
        """Read a run directory.

        Raises:
            ArtifactError: no run directory, a damaged file, or another schema.
        """
        folder = Path(folder)
        try:
            info = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
            maps = load_file(folder / MAPS_FILE)
        except (OSError, ValueError, SafetensorError) as broken:
            raise ArtifactError(
                f"{folder} is no readable run directory ({type(broken).__name__}: {broken}). It "
                f"holds {RUN_FILE} and {MAPS_FILE}, as record_run writes them; record it again."
            ) from broken
        found = info.get("schema") if isinstance(info, dict) else None
        if found != SCHEMA:
            raise ArtifactError(
                f"{folder / RUN_FILE} has schema {found!r}; this version reads {SCHEMA!r}. Record "
                "the run again, or read it with the version that wrote it."
            )
        return cls(info, maps)


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that it is there whole, or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
