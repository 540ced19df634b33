"""transformers: well-known architectures as configurations, for random weights without a hub."""

from typing import Any

_SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
_GIANT = {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24}
_DINOV2 = {"image_size": 518, "patch_size": 14}
_DINOV3 = {"num_register_tokens": 4, "pos_embed_rescale": 2.0}
_MLP = {384: 1536, 768: 3072, 1024: 4096}
_CLIP_TEXT = {"base": {"hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}}
_CLIP_TEXT["large"] = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}


def _vit(size: dict[str, int]) -> dict[str, Any]:
    return {**size, "intermediate_size": _MLP[size["hidden_size"]]}


def _clip(size: dict[str, int], patch: int, text: str, width: int, image: int = 224) -> dict:
    vision = {**_vit(size), "patch_size": patch, "image_size": image, "projection_dim": width}
    return {
        "vision_config": vision,
        "text_config": {**_CLIP_TEXT[text], "projection_dim": width},
        "projection_dim": width,
    }


ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "facebook/dinov2-small": ("Dinov2Model", {**_SMALL, **_DINOV2}),
    "facebook/dinov2-base": ("Dinov2Model", {**_BASE, **_DINOV2}),
    "facebook/dinov2-large": ("Dinov2Model", {**_LARGE, **_DINOV2}),
    "facebook/dinov2-giant": ("Dinov2Model", {**_GIANT, **_DINOV2, "use_swiglu_ffn": True}),
    "facebook/dinov2-with-registers-small": ("Dinov2WithRegistersModel", {**_SMALL, **_DINOV2}),
    "facebook/dinov2-with-registers-base": ("Dinov2WithRegistersModel", {**_BASE, **_DINOV2}),
    "facebook/dinov2-with-registers-large": ("Dinov2WithRegistersModel", {**_LARGE, **_DINOV2}),
    "facebook/dinov3-vits16-pretrain-lvd1689m": ("DINOv3ViTModel", {**_vit(_SMALL), **_DINOV3}),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": ("DINOv3ViTModel", {**_vit(_BASE), **_DINOV3}),
    "facebook/dinov3-vitl16-pretrain-lvd1689m": ("DINOv3ViTModel", {**_vit(_LARGE), **_DINOV3}),
    "google/vit-base-patch16-224": ("ViTForImageClassification", {"num_labels": 1000}),
    "google/vit-large-patch16-224": (
        "ViTForImageClassification",
        {**_vit(_LARGE), "num_labels": 1000},
    ),
    "google/siglip-base-patch16-224": ("SiglipModel", {}),
    "openai/clip-vit-base-patch16": ("CLIPModel", _clip(_BASE, 16, "base", 512)),
    "openai/clip-vit-base-patch32": ("CLIPModel", _clip(_BASE, 32, "base", 512)),
    "openai/clip-vit-large-patch14": ("CLIPModel", _clip(_LARGE, 14, "large", 768)),
    "openai/clip-vit-large-patch14-336": ("CLIPModel", _clip(_LARGE, 14, "large", 768, image=336)),
}
"""Name on the hub -> class of transformers, and what its configuration changes."""


def configuration(name: str) -> Any:
    """The configuration of a name in ARCHITECTURES."""
    import transformers

    model_class, changes = ARCHITECTURES[name]
    config = getattr(transformers, model_class).config_class(**changes)
    config.architectures = [model_class]
    return config
