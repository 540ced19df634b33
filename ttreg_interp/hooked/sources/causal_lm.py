"""transformers: causal language models under a pre-norm block, by family."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.hooked.language_parts import LMParts, rotary_positions, rotate
from ttreg_interp.hooked.parts import AttentionParts, BlockParts, Heads, MLPParts, Tokens
from ttreg_interp.hooked.sources import common

LLAMA_LIKE = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3", "Phi3")
"""Families whose blocks are written alike: grouped heads, rotary positions, a gated MLP."""
SOFTMAX = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
"""Attention of transformers that is softmax attention, by whatever kernel."""
FAMILIES = ("GPT2", "GPTNeoX", *LLAMA_LIKE)
"""Model classes, without their `ForCausalLM` or `LMHeadModel`."""

Project = Callable[[Tokens], tuple[Tensor, ...]]
Rows = Callable[[], tuple[Any, ...]]


def parts(model: nn.Module) -> LMParts:
    """The parts of a causal language model.

    Raises:
        UnsupportedModelError: another class, or a variant that would be computed wrongly.
    """
    _require_softmax(model)
    if common.is_instance(model, "transformers", "GPT2LMHeadModel"):
        return _gpt2(model)
    if common.is_instance(model, "transformers", "GPTNeoXForCausalLM"):
        return _gpt_neox(model)
    if common.is_instance(model, "transformers", *(f"{name}ForCausalLM" for name in LLAMA_LIKE)):
        return _llama(model)
    raise UnsupportedModelError(
        f"No source file knows {type(model).__module__}.{type(model).__name__} as a language model. "
        f"Supported are transformers' {', '.join(FAMILIES)}, with their heads: positions learned or "
        "rotary, a norm before every layer (and one behind it, in Gemma 2 and 3), attention over the "
        "whole text or a window. ALiBi (BLOOM, MPT, Falcon), norms behind the layers only (OLMo 2), "
        "chunked attention, experts (Mixtral, Qwen2-MoE) and state spaces are not."
    )


def _require_softmax(model: Any) -> None:
    """Refuse attention that was registered with transformers: blocks compute softmax attention."""
    kernel = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if kernel not in SOFTMAX:
        raise UnsupportedModelError(
            f"{type(model).__name__} attends by {kernel!r}, which hook points would silently replace by "
            f"softmax attention. Set one of {', '.join(map(str, SOFTMAX))}: "
            "model.set_attn_implementation('sdpa')."
        )


def _whole(model: Any, **fields: Any) -> LMParts:
    return LMParts(
        family=common.class_name(model),
        head=model.lm_head,
        reference=lambda ids: model(input_ids=ids, use_cache=False).logits,
        n_ctx=model.config.max_position_embeddings,
        **fields,
    )


# ---------------------------------------------------------------------- GPT-2


@dataclass(frozen=True)
class _Transposed:
    """GPT-2's Conv1D, read as the Linear that it is: its weight is stored [in, out]."""

    conv: Any

    def __call__(self, x: Tensor) -> Tensor:
        return self.conv(x)

    @property
    def weight(self) -> Tensor:
        return self.conv.weight.T

    @property
    def bias(self) -> Tensor:
        return self.conv.bias


def _gpt2(model: Any) -> LMParts:
    trunk = model.transformer
    common.require(not model.config.add_cross_attention, model, "cross-attention")

    def embed(ids: Tensor) -> Tokens:
        positions = trunk.wpe.weight[: ids.shape[1]]
        return trunk.wte(ids) + positions

    return _whole(
        model,
        embed=embed,
        positions=lambda residual, n_given: [None] * len(trunk.h),
        blocks=tuple(_gpt2_block(layer) for layer in trunk.h),
        ln_final=trunk.ln_f,
    )


def _gpt2_block(layer: Any) -> BlockParts:
    attn, mlp = layer.attn, layer.mlp
    inner, first = _Transposed(attn.c_attn), _Transposed(mlp.c_fc)
    return BlockParts(
        ln1=layer.ln_1,
        attn=AttentionParts(
            n_heads=attn.num_heads,
            d_head=attn.head_dim,
            qkv=common.fused_qkv(attn.c_attn, attn.num_heads),
            qkv_weights=lambda: common.three(inner.weight),
            qkv_biases=lambda: common.three(inner.bias),
            out=_Transposed(attn.c_proj),
            scale=attn.scaling,
            causal=True,
        ),
        ln2=layer.ln_2,
        mlp=MLPParts(
            project=lambda x: (mlp.c_fc(x), None),
            act=mlp.act,
            out=_Transposed(mlp.c_proj),
            in_weights=lambda: (first.weight, first.bias),
        ),
    )


# ---------------------------------------------------------------------- GPT-NeoX


def _gpt_neox(model: Any) -> LMParts:
    trunk = model.gpt_neox
    return _whole(
        model,
        embed=trunk.embed_in,
        positions=rotary_positions(trunk.rotary_emb, [()] * len(trunk.layers)),
        blocks=tuple(_gpt_neox_block(layer) for layer in trunk.layers),
        ln_final=trunk.final_layer_norm,
    )


def _gpt_neox_block(layer: Any) -> BlockParts:
    attn, mlp = layer.attention, layer.mlp
    n_heads = attn.config.num_attention_heads

    def split(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of q, k and v, which the source keeps head by head."""
        by_head = rows.unflatten(0, (n_heads, 3, -1))
        q, k, v = (part.flatten(0, 1) for part in by_head.unbind(1))
        return q, k, v

    def qkv(x: Tokens) -> tuple[Heads, Heads, Heads]:
        q, k, v = attn.query_key_value(x).unflatten(-1, (n_heads, 3, -1)).unbind(3)
        return q, k, v

    def biases() -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        bias = attn.query_key_value.bias
        return (None, None, None) if bias is None else split(bias)

    return BlockParts(
        ln1=layer.input_layernorm,
        attn=AttentionParts(
            n_heads=n_heads,
            d_head=attn.head_size,
            qkv=qkv,
            qkv_weights=lambda: split(attn.query_key_value.weight),
            qkv_biases=biases,
            out=attn.dense,
            scale=attn.scaling,
            rotate=rotate,
            causal=True,
        ),
        ln2=layer.post_attention_layernorm,
        mlp=MLPParts(
            project=lambda x: (mlp.dense_h_to_4h(x), None),
            act=mlp.act,
            out=mlp.dense_4h_to_h,
            in_weights=common.linear_weights(mlp.dense_h_to_4h),
        ),
        parallel=layer.use_parallel_residual,
    )


# ---------------------------------------------------------------------- Llama and its like


def _llama(model: Any) -> LMParts:
    trunk, config = model.model, model.config
    if getattr(config, "use_bidirectional_attention", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} lets tokens see those after them (use_bidirectional_attention), "
            "so it is no causal language model."
        )
    by_kind = common.is_instance(model, "transformers", "Gemma3ForCausalLM")
    kinds = [(config.layer_types[i],) if by_kind else () for i in range(len(trunk.layers))]
    return _whole(
        model,
        embed=trunk.embed_tokens,
        positions=rotary_positions(trunk.rotary_emb, kinds),
        blocks=tuple(_llama_block(layer) for layer in trunk.layers),
        ln_final=trunk.norm,
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def _llama_block(layer: Any) -> BlockParts:
    sandwiched = common.is_instance(
        layer, "transformers", "Gemma2DecoderLayer", "Gemma3DecoderLayer"
    )
    attn, mlp = _grouped_attention(layer.self_attn), _gated_mlp(layer.mlp)
    if not sandwiched:
        return BlockParts(layer.input_layernorm, attn, layer.post_attention_layernorm, mlp)
    return BlockParts(
        ln1=layer.input_layernorm,
        attn=replace(attn, post_norm=layer.post_attention_layernorm),
        ln2=layer.pre_feedforward_layernorm,
        mlp=replace(mlp, post_norm=layer.post_feedforward_layernorm),
    )


def _grouped_attention(attn: Any) -> AttentionParts:
    """Attention of heads that share keys and values in groups."""
    config, d_head = attn.config, attn.head_dim
    n_heads, n_groups = config.num_attention_heads, config.num_key_value_heads
    share = n_heads // n_groups
    projections = _phi3 if common.is_instance(attn, "transformers", "Phi3Attention") else _three
    project, weights, biases = projections(attn)

    def spread(rows: Tensor) -> Float[Tensor, "..."]:
        """Rows of grouped keys or values, one group for every head that shares it."""
        return rows.unflatten(0, (n_groups, d_head)).repeat_interleave(share, 0).flatten(0, 1)

    def qkv(x: Tokens) -> tuple[Heads, Heads, Heads]:
        q, k, v = (rows.unflatten(-1, (-1, d_head)) for rows in project(x))
        q, k = _normed(attn, q, k)
        return q, k.repeat_interleave(share, dim=2), v.repeat_interleave(share, dim=2)

    def qkv_weights() -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = weights()
        return q, spread(k), spread(v)

    def qkv_biases() -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        q, k, v = biases()
        return q, None if k is None else spread(k), None if v is None else spread(v)

    capped = common.is_instance(attn, "transformers", "Gemma2Attention")
    return AttentionParts(
        n_heads=n_heads,
        d_head=d_head,
        qkv=qkv,
        qkv_weights=qkv_weights,
        qkv_biases=qkv_biases,
        out=attn.o_proj,
        scale=attn.scaling,
        rotate=rotate,
        causal=True,
        window=_window(config, attn.layer_idx),
        softcap=attn.attn_logit_softcapping if capped else None,
    )


def _three(attn: Any) -> tuple[Project, Rows, Rows]:
    """Three linears: what they make of tokens, their weights and their biases."""
    linears = (attn.q_proj, attn.k_proj, attn.v_proj)
    return (
        lambda x: tuple(linear(x) for linear in linears),
        lambda: tuple(linear.weight for linear in linears),
        lambda: tuple(linear.bias for linear in linears),
    )


def _phi3(attn: Any) -> tuple[Project, Rows, Rows]:
    """The same of one linear, whose rows are queries, then grouped keys, then grouped values."""
    config, linear = attn.config, attn.qkv_proj
    grouped = config.num_key_value_heads * attn.head_dim
    sizes = (config.num_attention_heads * attn.head_dim, grouped, grouped)
    return (
        lambda x: linear(x).split(sizes, dim=-1),
        lambda: linear.weight.split(sizes),
        lambda: (None, None, None) if linear.bias is None else linear.bias.split(sizes),
    )


def _normed(attn: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Qwen 3 and Gemma 3 normalise queries and keys head by head."""
    if common.is_instance(attn, "transformers", "Qwen3Attention", "Gemma3Attention"):
        return attn.q_norm(q), attn.k_norm(k)
    return q, k


def _window(config: Any, layer: int) -> int | None:
    """How many tokens a token of this layer sees; None: the whole text."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and kinds[layer] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None)


def _gated_mlp(mlp: Any) -> MLPParts:
    if common.is_instance(mlp, "transformers", "Phi3MLP"):  # gate and linear branch in one
        return MLPParts(
            project=lambda x: mlp.gate_up_proj(x).chunk(2, dim=-1),
            act=mlp.activation_fn,
            out=mlp.down_proj,
            in_weights=common.packed_weights(mlp.gate_up_proj, 1),
            gate_weights=common.packed_weights(mlp.gate_up_proj, 0),
        )
    return MLPParts(
        project=lambda x: (mlp.gate_proj(x), mlp.up_proj(x)),
        act=mlp.act_fn,
        out=mlp.down_proj,
        in_weights=common.linear_weights(mlp.up_proj),
        gate_weights=common.linear_weights(mlp.gate_proj),
    )
