"""RegisterNeurons: which neurons make the outliers, how that was found, and how sure it is."""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ttreg_interp.discovery.schema import parse
from ttreg_interp.discovery.summary import summarised
from ttreg_interp.errors import ArtifactError, TTRegError
from ttreg_interp.hooked.load import weights_hash
from ttreg_interp.interventions.neuron_set import NeuronSet

SCHEMA = "register-neurons/1"
FILE_NAME = "register_neurons.json"
"""Name of the file in a Hugging Face repository."""

_log = logging.getLogger(__name__)

Ranking = tuple[tuple[int, int, float], ...]


@dataclass(frozen=True, repr=False)
class RegisterNeurons:
    """Register neurons with their provenance and evidence; interventions accept it as it is.

    Example:
        >>> found = RegisterNeurons.published("dinov2_vitl14_hub")
        >>> len(found), found.by_layer()[12]
        (45, (3168,))
    """

    neurons: NeuronSet
    """The neurons."""
    ranking: Ranking = ()
    """Rows (layer, neuron, score), best first; the neurons chosen, then the next ones."""
    threshold: float | None = None
    """Norm above which a token was an outlier."""
    detect_layer: int | None = None
    """Block whose output norms were compared with it."""
    emerges_at: int | None = None
    """First layer at which outliers stand out."""
    model: str = ""
    """Spec of the model."""
    weights_hash: str | None = None
    """sha256 of its weights."""
    image_size: tuple[int, int] | None = None
    """Height and width of the images, in pixels."""
    architecture: dict[str, int] = field(default_factory=dict)
    """`layers`, `mlp_hidden` and `d_model` of the model."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Versions, digest and number of the images, seed and configuration; or the source of a list."""
    evidence: dict[str, Any] = field(default_factory=dict)
    """What supports the list; see docs/reference/discovery.md."""
    caveats: tuple[str, ...] = ()
    """What a reader must know."""

    def __len__(self) -> int:
        return len(self.neurons)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.neurons)

    def by_layer(self) -> dict[int, tuple[int, ...]]:
        """Neurons of every layer that has some."""
        return self.neurons.by_layer()

    def __or__(self, other: "RegisterNeurons") -> "RegisterNeurons":
        return self._combined(other, self.neurons | other.neurons, "union")

    def __and__(self, other: "RegisterNeurons") -> "RegisterNeurons":
        return self._combined(other, self.neurons & other.neurons, "intersection")

    def _combined(
        self, other: "RegisterNeurons", neurons: NeuronSet, how: str
    ) -> "RegisterNeurons":
        for name in ("weights_hash", "architecture"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine and theirs and mine != theirs:
                raise ArtifactError(
                    f"The {how} of neurons of two models has no meaning: {self.model} and "
                    f"{other.model} differ in {name} ({mine} and {theirs})."
                )
        rows = {row[:2]: row for row in (*other.ranking, *self.ranking)}
        chosen = [row for pair, row in rows.items() if pair in set(neurons)]
        sources = [part.provenance or {"model": part.model} for part in (self, other)]
        return replace(
            self,
            neurons=neurons,
            ranking=tuple(sorted(chosen, key=lambda row: -row[2])),
            provenance={how: sources},
            evidence={},
            caveats=(*self.caveats, *(c for c in other.caveats if c not in self.caveats)),
        )

    def top(self, k: int) -> "RegisterNeurons":
        """The k best of the ranking, chosen before or not.

        Raises:
            ArtifactError: the file has no ranking, or a shorter one.
        """
        if k > len(self.ranking):
            raise ArtifactError(
                f"top({k}) of a ranking with {len(self.ranking)} rows; find more, or take fewer."
            )
        neurons = NeuronSet.of([row[:2] for row in self.ranking[:k]])
        return replace(self, neurons=neurons, evidence={})

    def matched_random(self, seed: int) -> NeuronSet:
        """As many random neurons in every layer, none of them in the list.

        Raises:
            ArtifactError: the number of neurons of a layer is not known.
        """
        if "mlp_hidden" not in self.architecture:
            raise ArtifactError(
                f"This list of {self.model} does not say how many neurons a layer has. Use "
                "neurons.neurons.matched_random(seed, model.cfg.d_mlp)."
            )
        return self.neurons.matched_random(seed, self.architecture["mlp_hidden"])

    def check_model(self, model: Any, strict: bool = True) -> "RegisterNeurons":
        """Itself, if it was made for this model.

        Args:
            model: a hooked model.
            strict: refuse other weights; else only warn of them, by logging.

        Raises:
            ArtifactError: a layer or neuron that the model lacks, or other weights.
        """
        try:
            self.neurons.check(model.cfg.n_layers, model.cfg.d_mlp, model.cfg.model_name)
        except TTRegError as error:
            raise ArtifactError(str(error)) from None
        if self.weights_hash is None:
            return self
        found = weights_hash(model.source)
        if found != self.weights_hash:
            message = (
                f"Found in {self.model} with weights {self.weights_hash[:12]}, not in "
                f"{model.cfg.model_name} with weights {found[:12]}. Find them anew, or pass "
                "strict=False if you know that they are the same neurons."
            )
            if strict:
                raise ArtifactError(message)
            _log.warning(message)
        return self

    # ------------------------------------------------------------------ words and pictures

    def __repr__(self) -> str:
        chosen = self.neurons.describe() if len(self) else "no neurons"
        return f"<RegisterNeurons of {self.model or 'an unnamed model'}: {chosen}>"

    def __str__(self) -> str:
        lines = [repr(self)[1:-1]]
        if self.threshold is not None:
            lines.append(
                f"outliers: norm above {self.threshold:.4g} after block {self.detect_layer}, "
                f"emerging at layer {self.emerges_at}"
            )
        chosen = set(self.neurons)
        rows = [row for row in self.ranking if row[:2] in chosen][:20]
        lines += [f"  layer {layer:3d} neuron {n:6d}  {score:10.4g}" for layer, n, score in rows]
        lines += summarised(self.evidence)
        lines += [f"caveat: {caveat}" for caveat in self.caveats]
        return "\n".join(lines)

    def plot(self, path: str | Path) -> None:
        """Save a picture: scores by rank, and the greedy curve where there is one."""
        from ttreg_interp.discovery.plots import plot_neurons

        plot_neurons(self, Path(path))

    # ------------------------------------------------------------------ files

    def to_dict(self) -> dict[str, Any]:
        """The document of schema register-neurons/1."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "architecture": self.architecture,
            "index_base": 0,
            "num_neurons": len(self),
            "layer_to_neurons": self.neurons.to_dict(),
            "threshold": self.threshold,
            "detect_layer": self.detect_layer,
            "emerges_at": self.emerges_at,
            "weights_hash": self.weights_hash,
            "image_size": None if self.image_size is None else list(self.image_size),
            "source": self.provenance.get("source", "ttreg_interp find_register_neurons"),
            "selection": self.provenance.get("selection", ""),
            "provenance": self.provenance,
            "evidence": self.evidence,
            "ranking": [list(row) for row in self.ranking],
            "caveats": list(self.caveats),
        }

    @classmethod
    def from_dict(cls, body: Any, where: str = "this document") -> "RegisterNeurons":
        """Read a register-neurons/1 or register-neuron-ranking/1 document.

        Raises:
            ArtifactError: another schema, or a damaged document.
        """
        return cls(**parse(body, where))

    def save(self, path: str | Path) -> Path:
        """Write the file, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        partial.write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        partial.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "RegisterNeurons":
        """Read a file: one of ours, or a published list of the same schemas.

        Raises:
            ArtifactError: no such file, no JSON, another schema, or damaged.
        """
        path = Path(path)
        try:
            body = json.loads(path.read_text())
        except OSError as error:
            raise ArtifactError(f"Cannot read neurons from {path}: {error.strerror}.") from None
        except ValueError as error:
            raise ArtifactError(f"{path} is not JSON: {error}.") from None
        return cls.from_dict(body, str(path))

    @classmethod
    def published(cls, name: str) -> "RegisterNeurons":
        """A published list by name; `published_lists()` names them.

        Raises:
            ArtifactError: no list of that name.
        """
        from ttreg_interp.discovery.published import read_published

        return read_published(name)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload to a Hugging Face repository as `register_neurons.json`; returns the commit's URL.

        Args:
            repo_id: `organisation/name`.
            kwargs: to `HfApi.upload_file`, e.g. token, revision, commit_message.
        """
        from huggingface_hub import HfApi

        content = (json.dumps(self.to_dict(), indent=1) + "\n").encode()
        info = HfApi().upload_file(
            path_or_fileobj=content, path_in_repo=FILE_NAME, repo_id=repo_id, **kwargs
        )
        return str(info)

    @classmethod
    def from_pretrained(cls, repo_id: str, **kwargs: Any) -> "RegisterNeurons":
        """Download from a Hugging Face repository.

        Args:
            repo_id: `organisation/name`.
            kwargs: to `hf_hub_download`, e.g. revision, filename.
        """
        from huggingface_hub import hf_hub_download

        filename = kwargs.pop("filename", FILE_NAME)
        return cls.load(hf_hub_download(repo_id, filename, **kwargs))
