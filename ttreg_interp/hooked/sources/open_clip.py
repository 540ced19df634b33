"""open_clip: the VisionTransformer of CLIP and CoCa models, and towers that are timm models."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ttreg_interp.errors import ArtifactError, UnsupportedModelError
from ttreg_interp.hooked.parts import AttentionParts, BlockParts, MLPParts, Tokens, ViTParts
from ttreg_interp.hooked.sources import Loaded, Request, common, timm
from ttreg_interp.hooked.text import TextTower


def tower(module: Any) -> nn.Module | None:
    """The image tower of a CLIP or CoCa model, or the tower itself."""
    if common.is_instance(module, "open_clip", "CLIP", "CustomTextCLIP", "CoCa"):
        return tower(module.visual)
    if common.is_instance(module, "open_clip", "TimmModel"):
        return module if timm.tower(module.trunk) is not None else None
    return module if common.is_instance(module, "open_clip", "VisionTransformer") else None


def parts(module: Any) -> ViTParts:
    """Where open_clip keeps the parts of an image tower."""
    if common.is_instance(module, "open_clip", "TimmModel"):
        return _timm_parts(module)
    pooler = module.attn_pool
    return ViTParts(
        family=common.class_name(module),
        embed=partial(_embed, module),
        ln_pre=common.or_none(module.ln_pre),
        blocks=tuple(_block(block) for block in module.transformer.resblocks),
        # CoCa normalises what its attention pooler returns, unless it has two poolers.
        ln_final=module.ln_post,
        norm_after_pool=_one_pooler(module) or (pooler is None and module.final_ln_after_pool),
        pool=partial(_pool, module),
        project=partial(_project, module),
        unembed=None if module.proj is None else (lambda: (module.proj.T, None)),
        reference=lambda pixels: _first(module(pixels)),
        image_size=tuple(module.image_size),
        patch_size=tuple(module.patch_size),
    )


def _timm_parts(module: Any) -> ViTParts:
    trunk = timm.parts(module.trunk)
    head = module.head
    linear = isinstance(getattr(head, "proj", None), nn.Linear) and isinstance(
        module.trunk.head, nn.Identity
    )
    unembed = (lambda: (head.proj.weight, head.proj.bias)) if linear else None
    return replace(
        trunk,
        family=f"{common.class_name(module)} over {trunk.family}",
        project=lambda pooled: head(trunk.project(pooled)),
        unembed=unembed if len(head) else trunk.unembed,
        reference=module,
        is_classifier=False,
    )


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _one_pooler(module: Any) -> bool:
    return module.attn_pool is not None and module.attn_pool_contrastive is None


def _embed(module: Any, pixels: Tensor) -> tuple[Tensor, None]:
    patches = module.conv1(pixels).flatten(2).transpose(1, 2)
    cls = module.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
    tokens = torch.cat((cls, patches), dim=1) + module.positional_embedding.to(patches.dtype)
    return tokens, None


def _pool(module: Any, tokens: Tokens) -> Tensor:
    if module.attn_pool is None:
        return module._global_pool(tokens)[0]
    if _one_pooler(module):
        # The norm comes between pooler and readout, so the readout (_global_pool of its
        # queries) is left to _project.
        return module.attn_pool(tokens)
    context = tokens if module.attn_pool_type == "parallel" else module.attn_pool(tokens)
    return module.attn_pool_contrastive(context)


def _project(module: Any, pooled: Tensor) -> Tensor:
    if _one_pooler(module):
        pooled = module._global_pool(pooled)[0]
    return pooled if module.proj is None else pooled @ module.proj


def _block(block: Any) -> BlockParts:
    common.require(not hasattr(block, "ln_1_kv"), block, "cross-attention")
    common.require(
        common.or_none(getattr(block, "ln_attn", None)) is None,
        block,
        "a norm on attention's output",
    )
    mlp = block.mlp
    return BlockParts(
        ln1=block.ln_1,
        attn=_attention(block.attn, _gamma(block.ls_1)),
        ln2=block.ln_2,
        mlp=MLPParts(
            project=lambda x: (mlp.c_fc(x), None),
            act=mlp.gelu,
            out=mlp.c_proj,
            in_weights=common.linear_weights(mlp.c_fc),
            inner_norm=common.or_none(getattr(mlp, "ln", None)),
            gamma=_gamma(block.ls_2),
        ),
    )


def _gamma(scale: Any) -> Callable[[], Tensor] | None:
    return None if isinstance(scale, nn.Identity) else (lambda: scale.gamma)


def _attention(attn: Any, gamma: Callable[[], Tensor] | None) -> AttentionParts:
    own = common.is_instance(attn, "open_clip", "Attention")
    known = own or common.is_instance(attn, "torch", "MultiheadAttention")
    common.require(known, attn, "this attention")
    if own:
        common.require(attn.logit_scale is None, attn, "scaled cosine attention")
        common.require(attn.head_scale is None, attn, "a scale per head")
    d_model = attn.in_proj_weight.shape[1]
    return AttentionParts(
        n_heads=attn.num_heads,
        d_head=d_model // attn.num_heads,
        qkv=common.fused_qkv(
            lambda x: F.linear(x, attn.in_proj_weight, attn.in_proj_bias),
            attn.num_heads,
            q_norm=common.or_none(attn.ln_q) if own else None,
            k_norm=common.or_none(attn.ln_k) if own else None,
        ),
        qkv_weights=lambda: common.three(attn.in_proj_weight),
        qkv_biases=lambda: common.three(attn.in_proj_bias),
        out=attn.out_proj,
        scale=(d_model // attn.num_heads) ** -0.5,
        inner_norm=common.or_none(attn.ln_inner) if own else None,
        gamma=gamma,
    )


def preprocess(module: Any, image_size: tuple[int, int]) -> Callable[[Any], Tensor]:
    """The evaluation transform that the tower's own configuration names."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = PreprocessCfg(**getattr(module, "preprocess_cfg", {}))
    transform: Any = image_transform_v2(replace(config, size=image_size), is_train=False)
    return transform


def load(request: Request) -> Loaded:
    """An open_clip model by `ARCHITECTURE/PRETRAINED_TAG`, `hf-hub:...`, or `local-dir:...`.

    Raises:
        UnsupportedModelError: no such architecture or tag, or a tower that is no supported ViT.
        ArtifactError: the local checkpoint is of another architecture.
    """
    import open_clip

    schema = request.name.startswith(("hf-hub:", "local-dir:"))
    name, _, tag = (request.name, "", "") if schema else request.name.partition("/")
    _check_known(name, tag, request, schema)
    try:
        model: Any = open_clip.create_model(
            name,
            pretrained=request.checkpoint or (None if request.random else tag or None),
            load_weights=not request.random,
            pretrained_text=False,
            force_image_size=request.image_size,
        ).eval()
    except RuntimeError as error:
        if not request.checkpoint:
            raise
        raise ArtifactError(
            f"{request.checkpoint} is not a checkpoint of open_clip {name}: {str(error)[:300]}. "
            "Name the architecture that the file was saved from."
        ) from None
    vision = tower(model)
    if vision is None:
        raise UnsupportedModelError(
            f"open_clip {name}: its image tower {type(model.visual).__name__} is not a plain vision "
            "transformer. Take one whose name begins with 'ViT', 'EVA' or 'coca_ViT'."
        )
    tokenizer: Any = open_clip.get_tokenizer(name)
    text = TextTower(module=model, tokenize=tokenizer, encode=model.encode_text)
    return Loaded(vision, preprocess(vision, parts(vision).image_size), text)


def _check_known(name: str, tag: str, request: Request, schema: bool) -> None:
    import open_clip

    if schema:
        return
    if name not in open_clip.list_models():
        near = [
            model for model in open_clip.list_models() if model.lower().startswith(name[:5].lower())
        ]
        raise UnsupportedModelError(
            f"open_clip {open_clip.__version__} has no architecture {name!r}. Near it: "
            f"{near[:6] or 'nothing'}; open_clip.list_models() lists all."
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not (request.random or request.checkpoint) and tag not in tags:
        raise UnsupportedModelError(
            f"open_clip has no pretrained weights {tag!r} for {name}; it has {tags}. Write "
            f"'open_clip:{name}/TAG', 'open_clip:{name}@FILE', or 'open_clip:{name}?random'."
        )
