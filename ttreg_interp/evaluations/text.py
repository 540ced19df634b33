"""Classes from text: names and templates, and the activation function that the weights expect."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import gelu, relu, silu

from ttreg_interp.errors import DataError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.hooked.text import TextTower
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
            if not data_names or "" in data_names:
                lacking = (
                    f"class {list(data_names).index('')} has none" if data_names else "none has"
                )
                raise DataError(
                    f"Classes of the set need names for a text: {lacking}. Name them all, or take "
                    "prompts.names=imagenet where ids are ImageNet's."
                )
            return tuple(data_names)
        import open_clip

        names = tuple(open_clip.IMAGENET_CLASSNAMES)
        _check_order(names, data_names)
        return names

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


def _check_order(names: Sequence[str], data_names: Sequence[str]) -> None:
    """Refuse a set whose class ids are plainly not ImageNet's.

    Names of one class seldom agree to the letter ('cock', 'rooster'); of ImageNet's own 1000 nine in ten
    share a word with open_clip's, of another order hardly one in ten.

    Raises:
        DataError: more than 1000 classes, other than 1000 folders of WordNet ids, or other names.
    """
    wrong = f"prompts.names=imagenet takes class ids for ImageNet's {len(names)}; "
    advice = "Take prompts.names=data, or number the classes as ImageNet does."
    ids = [bool(re.fullmatch(r"n\d{8}", name)) for name in data_names]
    if len(data_names) > len(names) or (any(ids) and len(data_names) != len(names)):
        raise DataError(f"{wrong}the set has {len(data_names)} classes. {advice}")
    pairs = zip(data_names, names, ids, strict=False)
    named = [(mine, theirs) for mine, theirs, wnid in pairs if mine and not wnid]
    agreeing = sum(bool(_words(mine) & _words(theirs)) for mine, theirs in named)
    if agreeing < len(named) / 2:
        odd = next(pair for pair in named if not _words(pair[0]) & _words(pair[1]))
        raise DataError(
            f"{wrong}of the set's {len(named)} names only {agreeing} agree, {odd[0]!r} stands where "
            f"ImageNet has {odd[1]!r}. {advice}"
        )


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower().replace("_", " ")))


def reads_lower_case(model: HookedViT) -> bool:
    """Whether the text tower was trained on lower case: SigLIP's, told by the bias of its sigmoid."""
    return model.text is not None and getattr(model.text.module, "logit_bias", None) is not None


def embedded(model: HookedViT, texts: Sequence[str]) -> Float[Tensor, "text output"]:
    """Embeddings of texts, in lower case for SigLIP: tokenizers of its second version keep the case.

    Raises:
        DataError: the model has no text tower.

    Source:
        SigLIP 2, arXiv 2502.14786, section 2.1 (text in lower case, padded to 64 tokens).
    """
    lower = reads_lower_case(model)
    return _tower(model).encode_text([text.lower() if lower else text for text in texts])


def _tower(model: HookedViT) -> TextTower:
    if model.text is None:
        raise DataError(
            f"{model.cfg.model_name} has no text tower. Zero-shot classification takes CLIP and "
            "SigLIP models, e.g. open_clip:ViT-B-16/laion2b_s34b_b88k."
        )
    return model.text


@torch.no_grad()
def classifier_of(
    model: HookedViT, prompts: Prompts, data_names: Sequence[str]
) -> Float[Tensor, "class output"]:
    """The class directions of a model with a text tower.

    Raises:
        DataError: it has none.
    """
    _tower(model)
    names = prompts.classes(data_names)
    return zero_shot_classifier([embedded(model, prompts.of(name)) for name in names])


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
    if reads_lower_case(model):
        notes["texts"] = "in lower case"
    if expected is not None and used != expected:
        notes["warning"] = (
            f"{model.spec} runs with {used}, but its weights were trained with {expected}: "
            f"accuracy and register neurons are those of another function. Load the architecture "
            f"{'with' if expected == 'quick gelu' else 'without'} '-quickgelu'."
        )
        logger.warning("%s", notes["warning"])
    return notes
