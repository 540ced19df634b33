"""transformers: ViT, DeiT, CLIP, SigLIP, SigLIP 2, DINOv2, DINOv3, InternVL, and LLaVA-style towers."""

from typing import Any

from torch import nn

from ttreg_interp.hooked.parts import ViTParts
from ttreg_interp.hooked.sources import _transformers_families as families
from ttreg_interp.hooked.sources import common


def tower(module: nn.Module) -> nn.Module | None:
    """`module` itself if its class is known, else the tower inside a LLaVA-style model."""
    if families.reader(module) is not None:
        return module
    children = dict(module.named_children())
    if type(module).__module__.split(".")[0] != "transformers" or "visual_projection" in children:
        return None
    inner = (tower(children[name]) for name in _HOLDERS if name in children)
    return next((found for found in inner if found is not None), None)


_HOLDERS = ("model", "vision_tower", "vision_model")


def parts(module: Any) -> ViTParts:
    read = families.reader(module)
    assert read is not None
    return read(module)


def preprocess(module, image_size):
    return None
