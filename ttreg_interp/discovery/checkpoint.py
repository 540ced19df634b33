"""Running sums on disk: a killed run goes on where it stopped, and shards of a run become one."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ttreg_interp.discovery.exact import ExactSums
from ttreg_interp.discovery.survey import Detection, NormSurvey
from ttreg_interp.discovery.thresholds import Threshold
from ttreg_interp.errors import ArtifactError

SCHEMA = "register-neuron-sums/2"


@dataclass(frozen=True)
class Shard:
    """Which groups of batches of a run one process takes: every n-th, from its own number on.

    Example:
        >>> [group for group in range(7) if Shard(1, 3).takes(group)]
        [1, 4]
    """

    number: int = 0
    """Of this shard, from 0."""
    of: int = 1
    """Shards of the run."""

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise ArtifactError(f"Shard {self.number} of {self.of}: numbers run from 0 to n - 1.")

    def takes(self, group: int) -> bool:
        """Whether the group of that number is its own."""
        return group % self.of == self.number


@dataclass
class RunState:
    """All that a scoring run knows: how outliers are told, and the sums so far."""

    fingerprint: dict[str, Any]
    """What must be equal for sums to be added: weights, images, choices."""
    survey: NormSurvey
    """Norms of all layers."""
    detection: Detection
    """How outliers are told."""
    sums: ExactSums = field(default_factory=ExactSums)
    """The sums so far."""
    shard: Shard = field(default_factory=Shard)
    """Which batches these are."""
    batches: int = 0
    """Batches of the whole run that were passed or left to other shards."""
    complete: bool = False
    """Whether the shard is through."""

    def save(self, path: str | Path) -> Path:
        """Write the file, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        header = {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "n_images": self.survey.n_images,
            "image_size": self.survey.image_size,
            "detection": asdict(self.detection),
            "shard": asdict(self.shard),
            "batches": self.batches,
            "complete": self.complete,
        }
        tensors = {f"sums.{name}": value.contiguous() for name, value in self.sums.sums.items()}
        tensors |= {f"survey.{name}": getattr(self.survey, name) for name in _SURVEY}
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        save_file(tensors, partial, metadata={"run": json.dumps(header, sort_keys=True)})
        partial.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "RunState":
        """Read a checkpoint.

        Raises:
            ArtifactError: no such file, or none of ours.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("run", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            raise ArtifactError(f"{path} is no checkpoint of a search: {error}.") from None
        if header.get("schema") != SCHEMA:
            raise ArtifactError(
                f"{path} has schema {header.get('schema')!r}; a checkpoint of a search has {SCHEMA!r}."
            )
        survey = {name: tensors[f"survey.{name}"] for name in _SURVEY}
        detection = header["detection"] | {
            "threshold": Threshold(**header["detection"]["threshold"])
        }
        sums = {key[5:]: value for key, value in tensors.items() if key.startswith("sums.")}
        return cls(
            fingerprint=header["fingerprint"],
            survey=NormSurvey(
                **survey, n_images=header["n_images"], image_size=tuple(header["image_size"])
            ),
            detection=Detection(**detection),
            sums=ExactSums(sums),
            shard=Shard(**header["shard"]),
            batches=header["batches"],
            complete=header["complete"],
        )

    def check_same_run(self, fingerprint: dict[str, Any], where: str) -> "RunState":
        """Itself, if it belongs to the run of that fingerprint.

        Raises:
            ArtifactError: names what differs.
        """
        differing = [
            f"{key}: {self.fingerprint.get(key)!r} there, {fingerprint.get(key)!r} here"
            for key in sorted(self.fingerprint.keys() | fingerprint.keys())
            if self.fingerprint.get(key) != fingerprint.get(key)
        ]
        if differing:
            raise ArtifactError(
                f"{where} belongs to another run ({'; '.join(differing)}). Remove it to start anew, "
                "or repeat the run as it was."
            )
        return self

    def check_shard(self, shard: Shard, where: str) -> "RunState":
        """Itself, if it holds that shard.

        Raises:
            ArtifactError: it holds another one.
        """
        if self.shard != shard:
            raise ArtifactError(
                f"{where} holds shard {self.shard.number} of {self.shard.of}, not {shard.number} of "
                f"{shard.of}. Give every shard a file of its own; merge joins them."
            )
        return self


_SURVEY = ("counts", "mean_median", "mean_max", "max_over_median")


def merge_states(states: Sequence[RunState]) -> RunState:
    """One state from all shards of a run; the sums are those of a single run to the last bit.

    Raises:
        ArtifactError: other runs, or shards that are missing, twice there, or unfinished.
    """
    if not states:
        raise ArtifactError("Nothing to merge: give the checkpoints of all shards.")
    first = states[0]
    for state in states[1:]:
        state.check_same_run(first.fingerprint, f"Shard {state.shard.number}")
    numbers = sorted(state.shard.number for state in states)
    if numbers != list(range(first.shard.of)) or any(s.shard.of != first.shard.of for s in states):
        raise ArtifactError(
            f"Found shards {numbers} of {first.shard.of}; a merge needs each of them once."
        )
    if unfinished := [state.shard.number for state in states if not state.complete]:
        raise ArtifactError(f"Shards {unfinished} are not through; resume them first.")
    return replace(
        first,
        sums=ExactSums.merged(state.sums for state in states),
        shard=Shard(),
        batches=max(state.batches for state in states),
    )


def merge(paths: Sequence[str | Path], into: str | Path) -> Path:
    """Merge the checkpoint files of all shards of a run into one.

    `find_register_neurons(..., checkpoint=into)` goes on from there, without another pass.

    Args:
        paths: checkpoints that `score_shard` wrote, in any order.
        into: the file to write.

    Raises:
        ArtifactError: other runs, or shards that are missing, twice there, or unfinished.
    """
    return merge_states([RunState.load(path) for path in paths]).save(into)


def load_or_none(path: str | Path | None) -> RunState | None:
    """The checkpoint, if there is one."""
    return RunState.load(path) if path is not None and Path(path).exists() else None
