"""transformers: what each class returns, read off the trunk's tokens."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ttreg_interp.hooked.parts import Pixels, Tokens, ViTParts
from ttreg_interp.hooked.sources import _transformers_trunks as trunks
from ttreg_interp.hooked.sources import common
from ttreg_interp.hooked.sources._transformers_trunks import Trunk


def reader(module: nn.Module) -> Callable[[Any], ViTParts] | None:
    """The function that reads `module`'s parts, None for a class that this file does not know."""
    return next(
        (
            read
            for name, read in READERS.items()
            if common.is_instance(module, "transformers", name)
        ),
        None,
    )


def _finish(
    module: Any,
    trunk: Trunk,
    pool: Callable[[Tokens], Tensor],
    reference: Callable[[Pixels], Tensor],
    head: nn.Module | None = None,
) -> ViTParts:
    head = nn.Identity() if head is None else head
    linear = isinstance(head, nn.Linear)
    return trunk(
        family=common.class_name(module),
        pool=pool,
        project=head,
        unembed=common.linear_weights(head) if linear else None,
        reference=reference,
    )


def _cls(tokens: Tokens) -> Tensor:
    return tokens[:, 0]


def _mean_patch(tokens: Tokens) -> Tensor:
    """The mean of the patches after one [CLS]."""
    return tokens[:, 1:].mean(dim=1)


def _mean(tokens: Tokens) -> Tensor:
    return tokens.mean(dim=1)


def _resizing(forward: Callable[..., Any], trunk: Trunk) -> Callable[[Pixels], Any]:
    """The source's forward, told to interpolate position embeddings at other sizes than its own."""
    size = trunk.keywords["image_size"]
    return lambda pixels: forward(pixels, interpolate_pos_encoding=trunks.is_other(pixels, size))


def _vit(module: Any) -> ViTParts:
    trunk = trunks.vit(module)
    forward = _resizing(module, trunk)
    if module.pooler is None:
        return _finish(module, trunk, _cls, lambda pixels: _cls(forward(pixels).last_hidden_state))
    head = nn.Sequential(module.pooler.dense, module.pooler.activation)
    return _finish(module, trunk, _cls, lambda pixels: forward(pixels).pooler_output, head)


def _vit_classifier(module: Any) -> ViTParts:
    trunk = trunks.vit(module.base_model)
    forward = _resizing(module, trunk)
    return _finish(module, trunk, _cls, lambda pixels: forward(pixels).logits, module.classifier)


def _deit_with_teacher(module: Any) -> ViTParts:
    trunk = trunks.vit(module.base_model)
    forward = _resizing(module, trunk)
    cls_head, distillation_head = module.cls_classifier, module.distillation_classifier
    return trunk(
        family=common.class_name(module),
        pool=lambda tokens: tokens[:, :2],
        project=lambda pooled: (cls_head(pooled[:, 0]) + distillation_head(pooled[:, 1])) / 2,
        reference=lambda pixels: forward(pixels).logits,
    )


def _clip_trunk(base: Any) -> Trunk:
    norms = {"ln_pre": base.pre_layrnorm, "ln_final": base.post_layernorm}
    return trunks.clip(base, **norms, norm_after_pool=True)


def _clip_tower(module: Any) -> ViTParts:
    trunk = _clip_trunk(module)
    forward = _resizing(module, trunk)
    return _finish(module, trunk, _cls, lambda pixels: forward(pixels).pooler_output)


def _clip_projected(module: Any) -> ViTParts:
    trunk, head = _clip_trunk(module.vision_model), module.visual_projection
    forward = _resizing(module, trunk)
    return _finish(module, trunk, _cls, lambda pixels: forward(pixels).image_embeds, head)


def _clip(module: Any) -> ViTParts:
    trunk, head = _clip_trunk(module.vision_model), module.visual_projection
    forward = _resizing(module.get_image_features, trunk)
    return _finish(module, trunk, _cls, lambda pixels: forward(pixels).pooler_output, head)


def _clip_classifier(module: Any) -> ViTParts:
    """CLIPForImageClassification reads the mean patch and leaves the final norm out."""
    trunk = trunks.clip(module.vision_model, ln_pre=module.vision_model.pre_layrnorm)
    forward, head = _resizing(module, trunk), module.classifier
    return _finish(module, trunk, _mean_patch, lambda pixels: forward(pixels).logits, head)


def _siglip(module: Any) -> ViTParts:
    trunk = trunks.clip(module, ln_final=module.post_layernorm, n_cls=0)
    return _attention_pooled(module, trunk, _resizing(module, trunk))


def _siglip2(module: Any) -> ViTParts:
    return _attention_pooled(module, trunks.siglip2(module), _naflex(module, module))


def _attention_pooled(module: Any, trunk: Trunk, forward: Callable[[Pixels], Any]) -> ViTParts:
    """SigLIP's pooled output; without its pooling head, as in many LLaVA towers, the mean token."""
    if module.use_head:
        return _finish(module, trunk, module.head, lambda pixels: forward(pixels).pooler_output)
    return _finish(module, trunk, _mean, lambda pixels: _mean(forward(pixels).last_hidden_state))


def _siglip_classifier(module: Any) -> ViTParts:
    base = module.vision_model
    if common.is_instance(module, "transformers", "Siglip2ForImageClassification"):
        trunk, forward = trunks.siglip2(base), _naflex(module, base)
    else:
        trunk = trunks.clip(base, ln_final=base.post_layernorm, n_cls=0)
        forward = _resizing(module, trunk)
    return _finish(module, trunk, _mean, lambda pixels: forward(pixels).logits, module.classifier)


def _naflex(forward: Any, base: Any) -> Callable[[Pixels], Any]:
    """SigLIP 2's forward on whole images: patches without padding, and their grid."""
    patch = base.embeddings.patch_size

    def of_images(pixels: Pixels) -> Any:
        patches = trunks.patchify(pixels, patch)
        return forward(
            patches,
            pixel_attention_mask=patches.new_ones(patches.shape[:2], dtype=torch.int32),
            spatial_shapes=trunks.grids(pixels, patch),
        )

    return of_images


def _dinov2(module: Any) -> ViTParts:
    return _finish(module, trunks.dinov2(module), _cls, lambda pixels: module(pixels).pooler_output)


def _dinov2_classifier(module: Any) -> ViTParts:
    """The head reads [CLS] and the mean patch, side by side."""
    trunk = trunks.dinov2(module.base_model)
    first_patch = 1 + trunk.keywords["n_trained_registers"]
    return _finish(
        module,
        trunk,
        lambda tokens: torch.cat((tokens[:, 0], tokens[:, first_patch:].mean(dim=1)), dim=1),
        lambda pixels: module(pixels).logits,
        module.classifier,
    )


def _dinov3(module: Any) -> ViTParts:
    return _finish(module, trunks.dinov3(module), _cls, lambda pixels: module(pixels).pooler_output)


def _internvl(module: Any) -> ViTParts:
    """The source returns tokens only; its configuration names the pooling."""
    pool = _mean_patch if module.config.use_mean_pooling else _cls
    return _finish(
        module, trunks.internvl(module), pool, lambda pixels: pool(module(pixels).last_hidden_state)
    )


READERS: dict[str, Callable[[Any], ViTParts]] = {
    "ViTModel": _vit,
    "ViTForImageClassification": _vit_classifier,
    "DeiTModel": _vit,
    "DeiTForImageClassification": _vit_classifier,
    "DeiTForImageClassificationWithTeacher": _deit_with_teacher,
    "CLIPModel": _clip,
    "CLIPVisionModel": _clip_tower,
    "CLIPVisionModelWithProjection": _clip_projected,
    "CLIPForImageClassification": _clip_classifier,
    "SiglipVisionModel": _siglip,
    "SiglipForImageClassification": _siglip_classifier,
    "Siglip2VisionModel": _siglip2,
    "Siglip2ForImageClassification": _siglip_classifier,
    "Dinov2Model": _dinov2,
    "Dinov2ForImageClassification": _dinov2_classifier,
    "Dinov2WithRegistersModel": _dinov2,
    "Dinov2WithRegistersForImageClassification": _dinov2_classifier,
    "DINOv3ViTModel": _dinov3,
    "InternVLVisionModel": _internvl,
}
"""Class of transformers -> the function that reads its parts."""
