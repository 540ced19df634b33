"""Site maps: where a model keeps what hook points show, as paths that nnsight understands.

A path is what one would write behind a traced model: module names, `.source.` and the name of an
operation inside a module's forward, and, where it names a site, `.input` or `.output` at its end.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.hooked.language_parts import LMParts
from ttreg_interp.hooked.parts import BlockParts, ViTParts
from ttreg_interp.hooked.sources.common import class_name

Call = Literal["transformers", "sdpa", "torch"]

ATTENTION_POINTS = (
    "hook_q",
    "hook_k",
    "hook_v",
    "hook_mask",
    "hook_attn_scores",
    "hook_pattern",
    "hook_z",
)
"""Hook points of attention, in the order of HookedAttention."""

TURNED = {"hook_q": "hook_rot_q", "hook_k": "hook_rot_k"}
"""What attention is called with where queries and keys are turned by position."""


@dataclass(frozen=True)
class BlockSites:
    """Where one pre-norm block keeps its parts, as paths from the block.

    The first four are modules. The others are optional; hook points that need one that is missing
    are refused. `print(nnsight.NNsight(module).get("blocks.0").source)` lists the operations.

    Example:
        >>> inside = BlockSites("norm1", "attn.proj", "norm2", "mlp.fc2", pattern="attn.drop.output")
        >>> list(inside.hook_sites())
        ['hook_resid_pre', 'attn.hook_mask', 'attn.hook_pattern', 'mlp.hook_post', 'hook_resid_post']
    """

    ln1: str
    """The norm before attention."""
    attn_out: str
    """The linear that reads the heads."""
    ln2: str
    """The norm before the MLP."""
    mlp_out: str
    """The linear that reads the neurons; its input is `mlp.hook_post`."""
    attention: str | None = None
    """The operation that turns queries, keys and values into heads."""
    call: Call = "transformers"
    """How that operation is called: as an attention interface of transformers, as torch's
    scaled_dot_product_attention, or as torch's multi_head_attention_forward."""
    rotates: bool = False
    """Whether queries and keys are turned by position before `attention`."""
    rotation: str | tuple[str, str] | None = None
    """The operation that turns them, called with queries, keys, cosines and sines; or two, called with
    the patches' rows of queries, then of keys, and a table."""
    before_turn: tuple[str, str] | None = None
    """With two: the sites of whole queries and keys, [batch, head, token, d_head]."""
    pattern: str | None = None
    """The site of the pattern, [batch, head, query, key], where attention is spelled out."""
    z: str | None = None
    """The site of the heads, [batch, token, head * d_head], where they are not what comes out of
    `attention`."""
    attn_contribution: str | None = None
    """The site of what attention adds to the residual stream."""
    resid_mid: str | None = None
    """The site of the residual stream between attention and MLP, before its two readers part."""
    mlp_contribution: str | None = None
    """The site of what the MLP adds to the residual stream."""
    attn_gamma: str | None = None
    """The parameter that scales what `attn_out` returns, [d_model], before it is added (LayerScale)."""
    mlp_gamma: str | None = None
    """The parameter that scales what `mlp_out` returns."""

    def hook_sites(self) -> dict[str, str]:
        """Hook points of a block in the order of its forward, and where each stands."""
        turning = self.turning() if self.rotates else ()
        before_turn = ("attn.hook_q", "attn.hook_k") if turning else ()
        called: dict[str, str | None]
        if self.attention:
            names = TURNED if self.rotates else {}
            called = {f"attn.{names.get(p, p)}": self.attention for p in ATTENTION_POINTS}
        else:
            called = dict.fromkeys(("attn.hook_mask", "attn.hook_pattern"), self.pattern)
        found = {
            "hook_resid_pre": "input",
            **dict(zip(before_turn, 2 * turning, strict=False)),
            **called,
            "attn.hook_z": self.z or self.attention,
            "hook_attn_out": self.attn_contribution,
            "hook_resid_mid": self.resid_mid,
            "mlp.hook_post": f"{self.mlp_out}.input",
            "hook_mlp_out": self.mlp_contribution,
            "hook_resid_post": "output",
        }
        return {point: path for point, path in found.items() if path is not None}

    def turning(self) -> tuple[str, ...]:
        """The operations that turn queries and keys: none, one for both, or one for each."""
        if self.rotation is None or isinstance(self.rotation, tuple):
            return self.rotation or ()
        return (self.rotation,)


@dataclass(frozen=True)
class SiteMap:
    """Where a model keeps its vision transformer and the parts of that."""

    block: str
    """Path of a block from the tower, with `{layer}` for its number."""
    inside: BlockSites
    """Where a block keeps its parts."""
    tower: str = ""
    """Path of the vision transformer from the model; empty where they are one."""
    ln_pre: str | None = None
    """Path from the tower of a norm between embedding and first block."""

    def block_path(self, layer: int) -> str:
        """Path of a block from the model."""
        return self.from_model(self.block.format(layer=layer))

    def from_model(self, path: str) -> str:
        """A path from the tower as a path from the model."""
        return ".".join(part for part in (self.tower, path) if part)

    def entrance(self) -> tuple[str, str]:
        """The sites of `hook_embed` and `hook_full_embed`, from the model."""
        if self.ln_pre is None:
            first = f"{self.block_path(0)}.input"
            return first, first
        norm = self.from_model(self.ln_pre)
        return f"{norm}.input", f"{norm}.output"


@dataclass(frozen=True)
class Operations:
    """What no module of a block holds: operations inside its forward."""

    attention: str | None
    """Operation of the attention module; None: a fused kernel that nobody sees, or `pattern`."""
    resid_mid: str | None
    """Operation of the block after which both branches see the residual stream; None: there is none,
    as where MLP and attention stand side by side."""
    contributions: tuple[str, str] | None = None
    """Sites of what attention and MLP add; None: the outputs of their last linears."""
    call: Call = "transformers"
    """See BlockSites."""
    rotation: str | tuple[str, str] | None = None
    """Operation of the attention module that turns queries and keys, or those that do."""
    before_turn: tuple[str, str] | None = None
    """See BlockSites; from the attention module."""
    pattern: str | None = None
    """See BlockSites; from the attention module."""


_INTERFACE = "attention_interface_1"
_DINO = Operations(_INTERFACE, "hidden_states_2", ("layer_scale1.output", "layer_scale2.output"))
_ROTATION = "apply_rotary_pos_emb_0"
_LLAMA = Operations(_INTERFACE, "hidden_states_1", rotation=_ROTATION)
_GEMMA_2 = replace(
    _LLAMA,
    resid_mid="hidden_states_2",
    contributions=("post_attention_layernorm.output", "post_feedforward_layernorm.output"),
)
_TIMM = Operations("F_scaled_dot_product_attention_0", "x_0", ("ls1.output", "ls2.output"), "sdpa")
_HUB = Operations(None, None, ("ls1.output", "ls2.output"), pattern="attn_drop.output")
_INTERNVL = Operations(
    _INTERFACE,
    "hidden_states_0",
    ("source.attention_output_0.output", "source.layer_output_3.output"),
)

BLOCKS = {
    "timm Block": _TIMM,
    "timm EvaBlock": replace(
        _TIMM,
        contributions=("drop_path1.output", "drop_path2.output"),
        rotation=("apply_rot_embed_cat_0", "apply_rot_embed_cat_1"),
        before_turn=("q_norm.output", "k_norm.output"),
    ),
    # Blocks of DINOv2's hub add inside functions of their own, which nobody sees.
    "dinov2 Block": _HUB,
    "dinov2 NestedTensorBlock": _HUB,
    "open_clip ResidualAttentionBlock": Operations(  # its attention is a module of torch
        "F_multi_head_attention_forward_1", "x_0", ("ls_1.output", "ls_2.output"), "torch"
    ),
    "transformers ViTLayer": Operations(_INTERFACE, "hidden_states_2"),
    "transformers DeiTLayer": Operations(_INTERFACE, "hidden_states_2"),
    "transformers CLIPEncoderLayer": Operations(_INTERFACE, "hidden_states_1"),
    "transformers SiglipEncoderLayer": Operations(_INTERFACE, "hidden_states_1"),
    "transformers Siglip2EncoderLayer": Operations(_INTERFACE, "hidden_states_1"),
    "transformers Dinov2Layer": _DINO,
    "transformers Dinov2WithRegistersLayer": _DINO,
    "transformers DINOv3ViTLayer": replace(_DINO, rotation=_ROTATION),
    "transformers InternVLVisionLayer": _INTERNVL,
    "transformers GPT2Block": Operations(_INTERFACE, "hidden_states_1"),
    "transformers LlamaDecoderLayer": _LLAMA,
    "transformers MistralDecoderLayer": _LLAMA,
    "transformers Qwen2DecoderLayer": _LLAMA,
    "transformers Qwen3DecoderLayer": _LLAMA,
    "transformers GemmaDecoderLayer": _LLAMA,
    "transformers Gemma2DecoderLayer": _GEMMA_2,
    "transformers Gemma3DecoderLayer": _GEMMA_2,
    "transformers Phi3DecoderLayer": _LLAMA,
    "transformers GPTNeoXLayer": Operations(_INTERFACE, None, rotation=_ROTATION),
}
"""Class of a block -> its operations, by nnsight's names. Modules are found by identity."""


def sites_of(model: nn.Module, tower: nn.Module, parts: ViTParts | LMParts) -> SiteMap:
    """The site map of a vision transformer or language model that a source file knows.

    Args:
        model: what is traced.
        tower: the vision transformer in it.
        parts: of the tower.

    Raises:
        UnsupportedModelError: a block whose operations are not listed in BLOCKS, or a kernel that takes
            no additive mask.
    """
    _require_additive_masks(tower)
    paths = {id(module): path for path, module in tower.named_modules()}
    first = parts.blocks[0]
    block_path = _parent(paths[id(first.ln1)])
    inside = {key: path.removeprefix(f"{block_path}.") for key, path in paths.items()}
    return SiteMap(
        block=f"{_parent(block_path)}.{{layer}}",
        inside=_inside(_operations(tower.get_submodule(block_path)), first, inside),
        tower=next(path for path, module in model.named_modules() if module is tower),
        ln_pre=None if parts.ln_pre is None else paths[id(parts.ln_pre)],
    )


def _operations(block: nn.Module) -> Operations:
    if class_name(block) not in BLOCKS:
        raise UnsupportedModelError(
            f"No sites are known for a block of class {class_name(block)}; known: "
            f"{', '.join(BLOCKS)}. Say where its parts are: "
            "TracedViT.trace(model, sites=SiteMap(...), shape=TowerShape(...))."
        )
    operations = BLOCKS[class_name(block)]
    if operations.call == "sdpa" and not block.get_submodule("attn").fused_attn:  # timm, told so
        return replace(operations, attention=None, pattern="attn_drop.output")
    return operations


def _require_additive_masks(tower: nn.Module) -> None:
    kernel = getattr(getattr(tower, "config", None), "_attn_implementation", None)
    if kernel not in (None, "eager", "sdpa"):
        raise UnsupportedModelError(
            f"{class_name(tower)} attends by {kernel!r}, whose masks cannot be handed on. Set "
            "model.set_attn_implementation('sdpa') or 'eager' before the trace."
        )


def _inside(operations: Operations, parts: BlockParts, paths: Mapping[int, str]) -> BlockSites:
    attn_out, mlp_out = (paths[id(_module(out))] for out in (parts.attn.out, parts.mlp.out))
    hidden = operations.attention is None  # what comes out of it
    between = parts.attn.inner_norm is not None or parts.attn.gate is not None
    added = operations.contributions or (f"{attn_out}.output", f"{mlp_out}.output")
    attn, turns = _parent(attn_out), parts.attn.rotate is not None and not hidden
    middle, before = operations.resid_mid, operations.before_turn
    return BlockSites(
        ln1=paths[id(parts.ln1)],
        attn_out=attn_out,
        ln2=paths[id(parts.ln2)],
        mlp_out=mlp_out,
        attention=_within(f"{attn}.source", operations.attention),
        call=operations.call,
        rotates=parts.attn.rotate is not None,
        rotation=_within(f"{attn}.source", operations.rotation) if turns else None,
        before_turn=_within(attn, before) if turns else None,
        pattern=_within(attn, operations.pattern),
        z=f"{attn_out}.input" if between or hidden else None,
        attn_contribution=added[0],
        resid_mid=None if middle is None else f"source.{middle}.output",
        mlp_contribution=added[1],
    )


def _within(path: str, names: Any) -> Any:
    """One name, several, or none, as paths."""
    if isinstance(names, tuple):
        return tuple(f"{path}.{name}" for name in names)
    return None if names is None else f"{path}.{names}"


def _module(linear: Any) -> nn.Module:
    """The module behind a linear; GPT-2's is a transposed view of one."""
    return linear if isinstance(linear, nn.Module) else linear.conv


def _parent(path: str) -> str:
    return path.rpartition(".")[0]
