"""transformers: ViT, DeiT, CLIP, SigLIP, SigLIP 2, DINOv2, DINOv3, InternVL, LLaVA-style towers."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.hooked.parts import ViTParts
from ttreg_interp.hooked.sources import Loaded, Request, common
from ttreg_interp.hooked.sources import _transformers_loading as loading
from ttreg_interp.hooked.sources import _transformers_processing as processing
from ttreg_interp.hooked.sources._transformers_families import reader

_HOLDERS = ("model", "vision_tower", "vision_model")
"""Where SigLIP and LLaVA-style models keep their tower."""
_PACKED = ("Qwen2VL", "Qwen2_5_VL", "Qwen3VL")
"""Families whose towers have no axis for images."""


def tower(module: nn.Module) -> nn.Module | None:
    """`module` itself if its class is known, else the known tower inside it."""
    if reader(module) is not None:
        return module
    _require_batches(module)
    children = dict(module.named_children())
    # Whoever projects what the tower returns has another output than the tower.
    if not _is_transformers(module) or "visual_projection" in children:
        return None
    inside = (tower(children[name]) for name in _HOLDERS if name in children)
    return next((found for found in inside if found is not None), None)


def _require_batches(module: nn.Module) -> None:
    if any(
        common.is_instance(module, "transformers", f"{name}PreTrainedModel") for name in _PACKED
    ):
        raise UnsupportedModelError(
            f"{common.class_name(module)} packs the patches of all images into one sequence, without [CLS] "
            "and with rotary positions in two directions; hook points take [batch, token, d_model]. "
            "LLaVA- and InternVL-style models are supported."
        )


def _is_transformers(module: nn.Module) -> bool:
    return type(module).__module__.split(".")[0] == "transformers"


def parts(module: Any) -> ViTParts:
    """Where transformers keeps the parts of a vision transformer.

    The output is the class's own: logits, an embedding, or what it calls pooled output; the
    layernormed [CLS] where a class pools nothing, and the mean token where it has no [CLS] either.

    Raises:
        UnsupportedModelError: a class that this file does not know, or an unsupported variant.
    """
    read = reader(module)
    if read is None:
        raise UnsupportedModelError(
            f"{common.class_name(module)} is no vision transformer that this file knows; "
            "`tower(module)` finds the one inside a larger model."
        )
    return read(module)


def preprocess(module: Any, image_size: tuple[int, int]) -> Callable[[Any], Tensor] | None:
    """The processor saved in the directory (or cached under the name) that `module` came from."""
    name = module.config.name_or_path
    return processing.saved(name, image_size, image_size, offline=True) if name else None


def load(request: Request) -> Loaded:
    """A model by its name on the hub, or by a local directory.

    Images become what the checkpoint's own processor makes of them (224 pixels for DINOv2, whose
    position grid is one of 518), or of `request.image_size`. Weights become float32.

    Raises:
        UnsupportedModelError: no vision transformer that this file knows.
        ArtifactError: nothing of that name within reach, or weights of another architecture.
    """
    config = loading.config_of(request)
    whole = loading.model_of(config, request)
    vision = tower(whole)
    if vision is None:
        raise UnsupportedModelError(
            f"hf:{request.name} is a {common.class_name(whole)}, and no vision transformer that "
            "this file knows is in it."
        )
    text = loading.text_of(whole, request.name)
    (vision if text is None else whole).float()  # a language model beside the tower is let go
    native, size = _sizes(vision, request)
    own_weights = request.random or request.checkpoint is not None
    transform = processing.saved(request.name, native, size, offline=own_weights)
    if transform is None:
        transform = processing.default(_model_type(vision), size or native)
    return Loaded(vision, transform, text)


def _model_type(vision: Any) -> str:
    return vision.config.model_type


def _sizes(vision: Any, request: Request) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """The tower's own image size, and the one that is asked for."""
    read = parts(vision)
    if request.image_size not in (None, read.image_size) and not read.resizable:
        raise UnsupportedModelError(
            f"hf:{request.name}: its position embedding is made for {read.image_size} pixels, and "
            f"transformers cannot interpolate it to {request.image_size}. Leave image_size out."
        )
    return read.image_size, request.image_size
