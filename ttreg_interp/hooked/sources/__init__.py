"""Source files: where each family of models keeps its parts, and how it is loaded by name.

A source file is a module of this package with four functions:

- `tower(module)`: the vision transformer inside `module` if this file knows its class, else None;
- `parts(tower)`: its ViTParts;
- `preprocess(tower, image_size)`: its image preprocessing where the object in hand tells, else None;
- `load(request)`: a `Loaded` by name, from a hub, a local checkpoint, or with random weights.

`docs/how-to/add-a-model.md` walks through a whole one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.hooked.parts import ViTParts

SOURCES = {
    "open_clip": "open_clip",
    "timm": "timm",
    "dinov2": "dinov2",
    "hf": "transformers",
    "testbed": "testbed",
}
"""Prefix of a model spec -> source file."""

FAMILIES = {
    "open_clip": "VisionTransformer (CLIP and CoCa towers), TimmModel over a timm VisionTransformer",
    "timm": "VisionTransformer, VisionTransformerDistilled, Eva",
    "dinov2": "DinoVisionTransformer of the DINOv2 hub",
    "hf": (
        "ViT, DeiT, CLIPVision, CLIPModel, Siglip(2)Vision, Dinov2, Dinov2WithRegisters, DINOv3ViT, "
        "InternVLVision, and LLaVA-style models around one of these"
    ),
    "testbed": "planted, clean: embedded models of known register neurons",
}
"""What each source file knows, as errors and `ttreg models` print it."""


@dataclass(frozen=True)
class Request:
    """What `load` asks of a source file."""

    name: str
    """The model's name in its library."""
    checkpoint: str | None = None
    """A local file of weights that replaces the hub's."""
    random: bool = False
    """Random weights of the right architecture; nothing is looked up on a hub."""
    image_size: tuple[int, int] | None = None
    """Height and width in pixels, where not the model's own."""


@dataclass(frozen=True)
class Loaded:
    """What a source file gives back."""

    module: nn.Module
    """The model, in evaluation mode."""
    preprocess: Callable[[Any], Tensor] | None
    """PIL image -> [channel, height, width]."""
    text: Any = None
    """A TextTower where the model has one."""


def source_file(prefix: str) -> ModuleType:
    """The source file of a spec's prefix.

    Raises:
        UnsupportedModelError: an unknown prefix, or a library that is not installed.
    """
    if prefix not in SOURCES:
        raise UnsupportedModelError(
            f"Unknown source {prefix!r}. A model spec is SOURCE:NAME with SOURCE one of "
            f"{', '.join(SOURCES)}, e.g. 'timm:vit_base_patch14_dinov2.lvd142m'."
        )
    return import_module(f"{__name__}.{SOURCES[prefix]}")


def parts_of(module: nn.Module) -> tuple[nn.Module, ViTParts]:
    """The vision tower inside `module`, and its parts.

    Raises:
        UnsupportedModelError: no source file knows the class.
    """
    file, tower = _claimed(module)
    return tower, file.parts(tower)


def default_preprocess(
    module: nn.Module, image_size: tuple[int, int]
) -> Callable[[Any], Tensor] | None:
    """The preprocessing that an object in hand tells of, else None.

    Raises:
        UnsupportedModelError: no source file knows the class.
    """
    file, tower = _claimed(module)
    return file.preprocess(tower, image_size)


def _claimed(module: nn.Module) -> tuple[ModuleType, nn.Module]:
    """The source file that knows `module`, and the vision tower that it sees there."""
    for prefix in SOURCES:
        file = source_file(prefix)
        tower = file.tower(module)
        if tower is not None:
            return file, tower
    known = "\n".join(f"  {prefix}: {classes}" for prefix, classes in FAMILIES.items())
    raise UnsupportedModelError(
        f"No source file knows {type(module).__module__}.{type(module).__name__}. Supported:\n"
        f"{known}\nThe nearest is {_nearest(module)}. To add yours, write a source file of about 40 "
        "lines: docs/how-to/add-a-model.md."
    )


def _nearest(module: nn.Module) -> str:
    """The family that shares most child-module names with `module`."""
    own = {name.rsplit(".", 1)[-1] for name, _ in module.named_modules()}
    marks = {
        "open_clip": {"resblocks", "c_fc", "c_proj", "ln_1", "ln_post"},
        "timm": {"patch_embed", "norm1", "fc1", "qkv", "blocks", "head_drop"},
        "dinov2": {"patch_embed", "ls1", "w12", "blocks", "qkv"},
        "hf": {"embeddings", "layernorm_before", "q_proj", "layer_norm1", "encoder", "layernorm"},
    }
    best = max(marks, key=lambda prefix: len(marks[prefix] & own))
    return f"{best} ({FAMILIES[best]})" if marks[best] & own else "none of them"
