"""transformers: an image processor as one function, PIL image -> [channel, height, width]."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ttreg_interp.hooked.sources import common

Size = tuple[int, int]
Preprocess = Callable[[Any], Tensor]

_WHOLE_IMAGE = (
    "BitImageProcessor",
    "CLIPImageProcessor",
    "DeiTImageProcessor",
    "DINOv3ViTImageProcessor",
    "SiglipImageProcessor",
    "ViTImageProcessor",
)
"""Processors that make one picture of an image; others cut tiles or patches."""

_OF_FAMILY = {
    "vit": "ViTImageProcessor",
    "deit": "DeiTImageProcessor",
    "clip": "CLIPImageProcessor",
    "clip_vision_model": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "siglip_vision_model": "SiglipImageProcessor",
    "siglip2": "Siglip2ImageProcessor",
    "siglip2_vision_model": "Siglip2ImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "dinov3_vit": "DINOv3ViTImageProcessor",
    "internvl_vision": "GotOcr2ImageProcessor",
}
"""Model type -> the processor class of its checkpoints."""

# DINOv2's checkpoints all say this; its processor class is another family's.
_DINOV2 = {
    "size": {"shortest_edge": 256},
    "image_mean": (0.485, 0.456, 0.406),
    "image_std": (0.229, 0.224, 0.225),
}


def saved(name: str, native: Size, image_size: Size | None, offline: bool) -> Preprocess | None:
    """The processor saved beside a checkpoint, None where there is none.

    Args:
        name: on the hub, or a directory.
        native: image size of the model.
        image_size: what the images should become, where not the processor's own size.
        offline: look in the directory and in the local cache only.
    """
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(name, local_files_only=offline)
    except (OSError, ValueError):
        return None
    return _function(processor, image_size or (None if _is_fixed(processor) else native))


def default(model_type: str, image_size: Size) -> Preprocess:
    """The defaults of the family's processor class, at `image_size`."""
    import transformers

    settings = _DINOV2 if model_type.startswith("dinov2") else {}
    processor = getattr(transformers, _OF_FAMILY[model_type])(**settings)
    return _function(processor, image_size)


def _is_fixed(processor: Any) -> bool:
    """Whether the processor makes images of one size and shape, whatever it is given."""
    whole = common.is_instance(processor, "transformers", *_WHOLE_IMAGE)
    return whole and bool(processor.do_center_crop or processor.size.height)


def _function(processor: Any, image_size: Size | None) -> Preprocess:
    if not common.is_instance(processor, "transformers", *_WHOLE_IMAGE):
        processor = _whole_image(processor)
    sizes = {} if image_size is None else _sizes(processor, image_size)

    def preprocess(image: Any) -> Tensor:
        pixels = processor(images=image.convert("RGB"), return_tensors="pt", **sizes)
        return pixels["pixel_values"][0]

    return preprocess


def _whole_image(processor: Any) -> Any:
    """A processor that resizes the whole image, in the colours of one that cuts tiles or patches."""
    from transformers import ViTImageProcessor

    return ViTImageProcessor(
        resample=processor.resample,
        image_mean=processor.image_mean,
        image_std=processor.image_std,
        rescale_factor=processor.rescale_factor,
    )


def _sizes(processor: Any, image_size: Size) -> dict[str, dict[str, int]]:
    """The arguments that make images of `image_size`, with the processor's own margin of crop."""
    height, width = image_size
    exact = {"height": height, "width": width}
    if not processor.do_center_crop:
        return {"size": exact}
    size, crop = processor.size, processor.crop_size
    if size.shortest_edge:
        margin = size.shortest_edge / min(crop.height, crop.width)
        return {"size": {"shortest_edge": round(margin * max(image_size))}, "crop_size": exact}
    larger = {
        "height": round(height * size.height / crop.height),
        "width": round(width * size.width / crop.width),
    }
    return {"size": larger, "crop_size": exact}
