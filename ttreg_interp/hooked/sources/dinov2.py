"""DINOv2's own code: the DinoVisionTransformer of its hub, also where a project ships a copy."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttreg_interp.errors import ArtifactError, UnsupportedModelError
from ttreg_interp.hooked.parts import AttentionParts, BlockParts, MLPParts, ViTParts
from ttreg_interp.hooked.sources import Loaded, Request, common

HUB = "facebookresearch/dinov2"
ENTRIES = tuple(f"dinov2_vit{size}14{registers}" for size in "sblg" for registers in ("", "_reg"))
"""Backbones of the hub."""


def tower(module: nn.Module) -> nn.Module | None:
    """`module` itself if it is DINOv2's class; DINOv3's class of the same name is another."""
    for cls in type(module).__mro__:
        if cls.__name__ == "DinoVisionTransformer" and "dinov2" in cls.__module__.split("."):
            return module
    return None


def parts(module: Any) -> ViTParts:
    """Where DINOv2 keeps the parts of a DinoVisionTransformer."""
    n_patches = module.pos_embed.shape[1] - 1
    if math.isqrt(n_patches) ** 2 != n_patches:
        raise UnsupportedModelError(
            f"{common.class_name(module)}: its position embedding holds {n_patches} patches, and "
            "DINOv2 reads every such embedding as a square grid. Build the model with a square "
            "img_size; images of other shapes are fine then."
        )
    return ViTParts(
        family=common.class_name(module),
        embed=lambda pixels: (module.prepare_tokens_with_masks(pixels), None),
        blocks=tuple(_block(block) for block in _flat(module.blocks)),
        ln_final=module.norm,
        pool=lambda tokens: tokens[:, 0],
        project=module.head,
        unembed=common.linear_weights(module.head) if isinstance(module.head, nn.Linear) else None,
        reference=module,
        # Code from before the trained registers has no such attribute.
        n_trained_registers=getattr(module, "num_register_tokens", 0),
        image_size=tuple(module.patch_embed.img_size),
        patch_size=tuple(module.patch_embed.patch_size),
        resizable=True,
        n_channels=module.patch_embed.proj.in_channels,
    )


def _flat(blocks: Any) -> list[Any]:
    """The blocks in order; a BlockChunk holds Identities in the places of earlier blocks."""
    flat = []
    for block in blocks:
        if not isinstance(block, nn.Identity):
            flat.extend(_flat(block) if isinstance(block, nn.ModuleList) else [block])
    return flat


def _block(block: Any) -> BlockParts:
    common.require(_named(block, "Block"), block, "this kind of block")
    return BlockParts(
        ln1=block.norm1,
        attn=_attention(block.attn, _gamma(block.ls1)),
        ln2=block.norm2,
        mlp=_mlp(block.mlp, _gamma(block.ls2)),
    )


def _named(module: Any, *classes: str) -> bool:
    """Whether `module` is of a class of that name; copies of DINOv2 have packages of their own."""
    return any(cls.__name__ in classes for cls in type(module).__mro__)


def _gamma(scale: Any) -> Callable[[], Tensor] | None:
    return None if isinstance(scale, nn.Identity) else (lambda: scale.gamma)


def _attention(attn: Any, gamma: Callable[[], Tensor] | None) -> AttentionParts:
    common.require(_named(attn, "Attention"), attn, "this attention")
    d_head = attn.qkv.in_features // attn.num_heads
    return AttentionParts(
        n_heads=attn.num_heads,
        d_head=d_head,
        qkv=common.fused_qkv(attn.qkv, attn.num_heads),
        qkv_weights=lambda: common.three(attn.qkv.weight),
        qkv_biases=lambda: common.three(attn.qkv.bias),
        out=attn.proj,
        scale=d_head**-0.5,
        gamma=gamma,
    )


def _mlp(mlp: Any, gamma: Callable[[], Tensor] | None) -> MLPParts:
    if _named(mlp, "SwiGLUFFN", "SwiGLUFFNFused"):
        return MLPParts(
            project=lambda x: mlp.w12(x).chunk(2, dim=-1),
            act=F.silu,
            out=mlp.w3,
            in_weights=common.packed_weights(mlp.w12, 1),
            gate_weights=common.packed_weights(mlp.w12, 0),
            gamma=gamma,
        )
    common.require(_named(mlp, "Mlp"), mlp, "this MLP")
    return MLPParts(
        project=lambda x: (mlp.fc1(x), None),
        act=mlp.act,
        out=mlp.fc2,
        in_weights=common.linear_weights(mlp.fc1),
        gamma=gamma,
    )


def preprocess(module: Any, image_size: tuple[int, int]) -> Callable[[Any], Tensor]:
    """DINOv2's evaluation transform (256 to a crop of 224, bicubic) scaled to `image_size`."""
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RGB(),
            v2.Resize(round(max(image_size) * 256 / 224), v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(list(image_size)),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        ]
    )


def load(request: Request) -> Loaded:
    """A backbone of DINOv2's hub by entry, `dinov2_vitb14_reg`, or by `CLONE/dinov2_vitb14_reg`.

    `CLONE` is a directory that holds DINOv2's code; without it torch.hub fetches the code.

    Raises:
        UnsupportedModelError: no such entry, or one that returns no plain backbone.
        ArtifactError: code or weights out of reach, or a checkpoint of another architecture.
    """
    clone, _, entry = request.name.rpartition("/")
    fetched = _fetch(clone, entry, not (request.random or request.checkpoint))
    module: Any = tower(fetched)
    if module is None:
        raise UnsupportedModelError(
            f"dinov2:{request.name} returns a {type(fetched).__name__}, no backbone. Entries: "
            f"{', '.join(ENTRIES)}."
        )
    if request.checkpoint:
        common.load_weights(module, common.read_weights(request.checkpoint), request.checkpoint)
    size = request.image_size or tuple(module.patch_embed.img_size)
    return Loaded(module.eval(), preprocess(module, size))


def _fetch(clone: str, entry: str, pretrained: bool) -> Any:
    """What torch.hub returns, with errors of one line."""
    # Whoever names the source trusts it (torch would ask on the terminal), and its default branch
    # needs no validation (which spends the hub's few anonymous requests).
    remote = {"trust_repo": True, "skip_validation": True}
    options: dict[str, Any] = {"source": "local"} if clone else remote
    try:
        return torch.hub.load(clone or HUB, entry, pretrained=pretrained, **options)
    except OSError as error:
        raise ArtifactError(
            f"dinov2:{entry}: {clone or HUB} or its weights are out of reach ({error}). Give a "
            f"clone, 'dinov2:CLONE/{entry}', and a local file of weights, '@FILE'; timm and "
            "transformers have the same weights: 'timm:vit_base_patch14_dinov2.lvd142m', "
            "'hf:facebook/dinov2-base'."
        ) from None
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"dinov2:{entry}: {error}. Entries: {', '.join(ENTRIES)}."
        ) from None
