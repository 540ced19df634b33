"""AttentionBiasFit: k' and v' of a model with what they were fitted on and how good they are."""

import json
import logging
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from ttreg_interp.errors import ArtifactError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.hooked.load import weights_hash
from ttreg_interp.interventions import AttentionBias, Intervention, NeuronSet
from ttreg_interp.metrics.intervals import Interval
from ttreg_interp.theory.bias_methods import biased

SCHEMA = "attention-bias/1"
Method = Literal["mean", "least_squares", "trained"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """Change of the output on images that the fit did not see, ||f - intact|| / ||intact||."""

    n_images: int
    """How many."""
    bias: Interval
    """Neurons zeroed, k' and v' in their place."""
    zeroed: Interval
    """Control: neurons zeroed, nothing in their place."""
    register: Interval | None
    """The test-time register itself; None where k' and v' come from a row of the model."""
    bias_minus_zeroed: Interval
    """Paired difference."""
    bias_minus_register: Interval | None
    """Paired difference."""

    @classmethod
    def from_dict(cls, body: dict[str, Any]) -> "HeldOut":
        """The inverse of `dataclasses.asdict`."""
        read: dict[str, Any] = {
            k: Interval(**v) if isinstance(v, dict) else v for k, v in body.items()
        }
        return cls(**read)


@dataclass(frozen=True, repr=False)
class AttentionBiasFit:
    """k' and v' per layer and head, and where they come from.

    `fit_attention_bias` makes one and has an example; `save`, `load` and `check_model` keep it with the
    model that it was made for, and `intervention()` applies it.
    """

    bias: AttentionBias
    """k' and v'."""
    neurons: NeuronSet
    """The register neurons, which are zeroed beside it."""
    method: Method
    """How they were fitted."""
    n_images: int
    """On how many images (or texts)."""
    image_size: tuple[int, int] | None
    """Height and width of those in pixels; None for texts."""
    held_out: HeldOut
    """How well they do on others."""
    model: str
    """Spec of the model."""
    weights_hash: str
    """sha256 of its weights."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Versions, options, digest of the images; of a trained fit, first and last losses."""

    @property
    def k(self) -> Float[Tensor, "layer head d_head"]:
        """k', a row for each of `layers`."""
        return self.bias.k.tensor

    @property
    def v(self) -> Float[Tensor, "layer head d_head"]:
        """v', a row for each of `layers`."""
        return self.bias.v.tensor

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have a bias."""
        return self.bias.layers or tuple(range(len(self.k)))

    def intervention(self, copies: float = 1.0) -> Intervention:
        """`ZeroNeurons(neurons) + AttentionBias(k', v')`.

        Args:
            copies: as how many keys the bias counts.
        """
        return biased(self.neurons, AttentionBias(self.bias.k, self.bias.v, self.layers, copies))

    def check_model(
        self, model: Any, image_size: tuple[int, int] | None = None, strict: bool = True
    ) -> "AttentionBiasFit":
        """Itself, if it was fitted on this model at this resolution.

        Args:
            model: a hooked model.
            image_size: height and width of the images to come; None: the model's own.
            strict: refuse; else only warn, by logging.

        Raises:
            ArtifactError: other weights, or another resolution.
        """
        size = image_size or (model.image_size if isinstance(model, HookedViT) else None)
        found = weights_hash(model.source)
        problems = []
        if found != self.weights_hash:
            problems.append(
                f"with weights {self.weights_hash[:12]}, and {model.cfg.model_name} has {found[:12]}"
            )
        if None not in (size, self.image_size) and tuple(size) != self.image_size:  # type: ignore[arg-type]
            problems.append(f"at {self.image_size} pixels, and the images have {tuple(size)}")  # type: ignore[arg-type]
        if problems:
            message = (
                f"k' and v' were fitted on {self.model} {'; '.join(problems)}. Fit them anew, or pass "
                "strict=False if you know that they carry over."
            )
            if strict:
                raise ArtifactError(message)
            _log.warning(message)
        return self

    def __repr__(self) -> str:
        return (
            f"<AttentionBiasFit of {self.model}: {self.method}, {len(self.layers)} layers, "
            f"{self.n_images} images; held-out change {self.held_out.bias}, zeroed "
            f"{self.held_out.zeroed}>"
        )

    # ------------------------------------------------------------------ files

    def to_dict(self) -> dict[str, Any]:
        """All but k' and v', for JSON."""
        return {
            "schema": SCHEMA,
            "method": self.method,
            "model": self.model,
            "weights_hash": self.weights_hash,
            "image_size": self.image_size,
            "n_images": self.n_images,
            "neurons": self.neurons.to_dict(),
            "layers": self.layers,
            "held_out": asdict(self.held_out),
            "provenance": self.provenance,
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a safetensors file, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"k": self.k.detach().cpu().contiguous(), "v": self.v.detach().cpu().contiguous()}
        content = tensors_to_bytes(tensors, {"attention_bias": json.dumps(self.to_dict())})
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        partial.write_bytes(content)
        partial.replace(path)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "AttentionBiasFit":
        """Read a file; `check_model` then says whether it is for a model.

        Raises:
            ArtifactError: no such file, no safetensors, another schema, or damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"Cannot read an attention bias from {path}: {error}.") from None
        try:
            body = json.loads(metadata.get("attention_bias", "{}"))
            if body.get("schema") != SCHEMA:
                raise ArtifactError(
                    f"{path} has schema {body.get('schema')!r}; readable is {SCHEMA}."
                )
            return cls._from_parts(body, tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{path} is damaged: {type(error).__name__}: {error}. Fit and save it again."
            ) from None

    @classmethod
    def _from_parts(cls, body: dict[str, Any], tensors: dict[str, Tensor]) -> "AttentionBiasFit":
        size = body["image_size"]
        return cls(
            bias=AttentionBias(tensors["k"], tensors["v"], tuple(body["layers"])),  # type: ignore[arg-type]
            neurons=NeuronSet.of(body["neurons"]),
            method=body["method"],
            n_images=body["n_images"],
            image_size=None if size is None else (size[0], size[1]),
            held_out=HeldOut.from_dict(body["held_out"]),
            model=body["model"],
            weights_hash=body["weights_hash"],
            provenance=body["provenance"],
        )
