"""Classes from text: names and templates, and the activation function that the weights expect."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import gelu, relu, silu

from ttreg_interp.errors import DataError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.metrics.classification import zero_shot_classifier

logger = logging.getLogger("ttreg_interp")


@dataclass(frozen=True)
class Prompts:
    """How classes become text."""

    names: Literal["imagenet", "data"] = "imagenet"
    """'imagenet': open_clip's 1000 names; 'data': those of the set of images."""
    templates: Literal["openai-80", "simple-7", "photo"] = "openai-80"
    """OpenAI's 80 templates, 7 of them, or 'a photo of a {}.' alone."""

    def classes(self, data_names: Sequence[str]) -> tuple[str, ...]:
        """The class names.

        Raises:
            DataError: names of the set are wanted, and it has none.
        """
        if self.names == "data":
            if not data_names:
                raise DataError("The set of images has no class names; take names='imagenet'.")
            return tuple(data_names)
        import open_clip

        return tuple(open_clip.IMAGENET_CLASSNAMES)

    def of(self, name: str) -> list[str]:
        """All prompts of a class."""
        if self.templates == "photo":
            return [f"a photo of a {name}."]
        import open_clip

        chosen = {
            "openai-80": open_clip.OPENAI_IMAGENET_TEMPLATES,
            "simple-7": open_clip.SIMPLE_IMAGENET_TEMPLATES,
        }
        return [template(name) for template in chosen[self.templates]]


@torch.no_grad()
def classifier_of(
    model: HookedViT, prompts: Prompts, data_names: Sequence[str]
) -> Float[Tensor, "class output"]:
    """The class directions of a model with a text tower.

    Raises:
        DataError: it has none.
    """
    if model.text is None:
        raise DataError(
            f"{model.cfg.model_name} has no text tower. Zero-shot classification takes CLIP and "
            "SigLIP models, e.g. open_clip:ViT-B-16/laion2b_s34b_b88k."
        )
    names = prompts.classes(data_names)
    return zero_shot_classifier([model.text.encode_text(prompts.of(name)) for name in names])


def activation_of(model: HookedViT) -> str:
    """Which function the MLPs of the vision tower apply, found by applying it; or 'other'."""
    x = torch.linspace(-4, 4, 101, device=model.cfg.device, dtype=model.cfg.dtype)
    found = model.parts.blocks[0].mlp.act(x)
    known = {
        "gelu": gelu(x),
        "quick gelu": x * torch.sigmoid(1.702 * x),
        "gelu tanh": gelu(x, approximate="tanh"),
        "silu": silu(x),
        "relu": relu(x),
    }
    distance = {name: float((found - y).abs().max()) for name, y in known.items()}
    nearest = min(distance, key=lambda name: distance[name])
    return nearest if distance[nearest] < 1e-2 and _apart(distance) else "other"


def _apart(distance: Mapping[str, float]) -> bool:
    """Whether the nearest is plainly nearer than the second; tanh's is 5e-4 away from gelu."""
    first, second, *_ = sorted(distance.values())
    return first < second / 3


def trained_with(spec: str | None) -> str | None:
    """The activation function that open_clip's weights of that name were trained with; else None."""
    if not spec or not spec.startswith("open_clip:"):
        return None
    name, slash, tag = spec.removeprefix("open_clip:").partition("/")
    if not slash or "@" in tag or "?" in tag:
        return None
    import open_clip

    config = open_clip.get_pretrained_cfg(name, tag)
    if not config:
        return None
    return "quick gelu" if config.get("quick_gelu") else "gelu"


def activation_notes(model: HookedViT) -> dict[str, Any]:
    """The activation function in use and the one that is expected; with a warning if they differ."""
    used, expected = activation_of(model), trained_with(model.spec)
    notes: dict[str, Any] = {"activation": used, "trained with": expected}
    if expected is not None and used != expected:
        notes["warning"] = (
            f"{model.spec} runs with {used}, but its weights were trained with {expected}: "
            f"accuracy and register neurons are those of another function. Load the architecture "
            f"{'with' if expected == 'quick gelu' else 'without'} '-quickgelu'."
        )
        logger.warning("%s", notes["warning"])
    return notes
