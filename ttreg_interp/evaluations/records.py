"""Records on disk: what each arm did with each image, chunk by chunk, so that a kill costs one chunk.

A chunk is one safetensors file with all arms of some images, written whole or not at all. Shards
write into the same folder; the files are the merge.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ttreg_interp.errors import ArtifactError
from ttreg_interp.evaluations.stored import Stored, find

SCHEMA = "evaluation-records/1"


@dataclass(frozen=True)
class Chunk:
    """Which images one file holds."""

    split: str
    """Of which set."""
    number: int
    """From 0."""
    images: range
    """Places in the set."""


@dataclass(frozen=True)
class Records:
    """The records of one split, read as they are asked for."""

    folder: Path
    """Of the run."""
    split: str
    """Which set of images."""
    chunks: tuple[Chunk, ...]
    """All chunks of the split, in order."""

    def column(self, run: str, name: str) -> Shaped[Tensor, "image ..."]:
        """What was kept under a name, of all images that could be read, in order.

        Raises:
            ArtifactError: a chunk is missing, damaged, or has no such record.
        """
        parts = [self._part(chunk, f"{run}/{name}") for chunk in self.chunks]
        parts = [part for part in parts if part is not None]
        if not parts:
            raise self._nothing()
        return torch.cat(parts)

    def rows(self, run: str, name: str, device: torch.device | str = "cpu") -> Stored:
        """The same without reading it: for what need not fit into memory.

        Args:
            run: of which arm or draw.
            name: of the record.
            device: where rows go when they are read.

        Raises:
            ArtifactError: as `column`.
        """
        files = map(self._file, self.chunks)
        places = [find(file, f"{run}/{name}") for file in files if header(file)["images"]]
        if not places:
            raise self._nothing()
        return Stored(places, device)

    def images(self) -> list[int]:
        """Places in the set of the images that could be read."""
        return [place for chunk in self.chunks for place in header(self._file(chunk))["images"]]

    def faults(self) -> list[str]:
        """What was wrong with the others."""
        return [fault for chunk in self.chunks for fault in header(self._file(chunk))["faults"]]

    def _nothing(self) -> ArtifactError:
        return ArtifactError(f"{self.folder}: no image of the {self.split} set was recorded.")

    def _file(self, chunk: Chunk) -> Path:
        return file_of(self.folder, chunk)

    def _part(self, chunk: Chunk, key: str) -> Tensor | None:
        file = self._file(chunk)
        if not header(file)["images"]:
            return None
        with safe_open(file, framework="pt") as tensors:
            if key not in tensors.keys():  # noqa: SIM118  (no mapping)
                raise ArtifactError(f"{file} has no record {key!r}. Remove it; it is made again.")
            return tensors.get_tensor(key)


def file_of(folder: Path, chunk: Chunk) -> Path:
    """Where a chunk is kept."""
    return folder / "records" / f"{chunk.split}-{chunk.number:06}.safetensors"


def write(
    file: Path, kept: Mapping[str, Tensor], images: Sequence[int], faults: Sequence[str]
) -> None:
    """Write one chunk, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.part")
    body = {"schema": SCHEMA, "images": list(images), "faults": list(faults)}
    tensors = {name: tensor.contiguous() for name, tensor in kept.items()}
    save_file(tensors, partial, metadata={"chunk": json.dumps(body)})
    partial.replace(file)


def header(file: Path) -> dict[str, Any]:
    """Which images a chunk holds, and what was wrong with the others.

    Raises:
        ArtifactError: no such file, or none of ours.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            body = json.loads((tensors.metadata() or {}).get("chunk", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise ArtifactError(
            f"{file} is no chunk of records: {error}. If a shard has not run yet, run it; if the "
            "file is damaged, remove it and run again."
        ) from None
    if body.get("schema") != SCHEMA:
        raise ArtifactError(f"{file} has schema {body.get('schema')!r}; expected {SCHEMA!r}.")
    return body


def claim(folder: Path, manifest: dict[str, Any]) -> None:
    """Make the folder this run's own, or see that it is so already.

    Raises:
        ArtifactError: it holds another run; names what differs.
    """
    file = folder / "run.json"
    text = json.dumps(manifest, indent=1, sort_keys=True)
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8"))
        wanted = json.loads(text)
        differing = _differing(found, wanted)
        if differing:
            raise ArtifactError(
                f"{folder} belongs to another run ({'; '.join(differing[:5])}). Give another "
                "folder, or repeat the run as it was."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".run.json.{os.getpid()}.part")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(file)


def _differing(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Which entries of two manifests differ, in words; entries of entries by name."""
    lines = []
    for key in sorted(found.keys() | wanted.keys()):
        there, here = found.get(key), wanted.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            lines += [f"{key}.{line}" for line in _differing(there, here)]
        elif there != here:
            lines.append(f"{key}: {str(there)[:60]!r} there, {str(here)[:60]!r} here")
    return lines
