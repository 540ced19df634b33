"""Small language models of random weights, one of every family that HookedLM knows."""

from typing import Any

import torch
from torch import nn

from ttreg_interp.errors import UnsupportedModelError

FAMILIES = ("gpt2", "gpt_neox", "llama", "qwen3", "gemma", "phi3", "gemma2", "gemma3_text")
"""transformers' names: learned positions; parallel blocks, rotation of a quarter of the head;
grouped heads; normed queries and keys; gains from one, one group; one linear for q, k, v; norms behind
the layers too, capped scores and logits, windows in every other layer; windows of another rotation."""


def random_lm(
    family: str,
    *,
    n_layers: int = 3,
    d_model: int = 32,
    n_heads: int = 4,
    vocabulary: int = 50,
    n_ctx: int = 64,
    seed: int = 0,
) -> nn.Module:
    """A causal language model of transformers with normal weights; nothing is looked up.

    Args:
        family: one of FAMILIES.
        n_layers: blocks.
        d_model: width of the residual stream; an MLP has 3 neurons a dimension.
        n_heads: heads of a layer, two to a group where the family groups them.
        vocabulary: tokens.
        n_ctx: longest text.
        seed: of the weights.

    Raises:
        UnsupportedModelError: another family.

    Example:
        >>> from ttreg_interp.hooked import HookedLM
        >>> HookedLM.wrap(random_lm("llama")).cfg.n_layers
        3
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if family not in FAMILIES:
        raise UnsupportedModelError(f"{family!r} is none of {', '.join(FAMILIES)}.")
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": d_model,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "max_position_embeddings": n_ctx,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    own = _own_settings(family, n_layers, d_model, n_heads)
    config = AutoConfig.for_model(family, **sizes, **own)
    model = AutoModelForCausalLM.from_config(config)
    _draw(model, torch.Generator().manual_seed(seed))
    return model.eval()


def _own_settings(family: str, n_layers: int, d_model: int, n_heads: int) -> dict[str, Any]:
    """What a family is told beyond the sizes that all share."""
    if family == "gpt2":
        return {"n_inner": 3 * d_model}
    own: dict[str, Any] = {"intermediate_size": 3 * d_model}
    if family == "gpt_neox":
        return own
    d_head = d_model // n_heads
    own |= {"num_key_value_heads": 1 if family == "gemma" else n_heads // 2, "head_dim": d_head}
    if family in ("gemma2", "gemma3_text"):  # its default scale is made for wider heads
        own |= {"query_pre_attn_scalar": d_head, "sliding_window": 6}
    if family == "gemma2":
        own |= {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
    if family == "gemma3_text":
        own["layer_types"] = ["full_attention", *["sliding_attention"] * (n_layers - 1)]
    return own


@torch.no_grad()
def _draw(model: nn.Module, generator: torch.Generator) -> None:
    """Embeddings of unit entries; maps that keep the size of what they read; gains about one."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter += 0.05 * noise
        elif "emb" in name or "wte" in name or "wpe" in name:
            parameter.copy_(noise * (0.1 if "wpe" in name else 1.0))
        else:
            d_in = parameter.shape[0] if "c_" in name else parameter.shape[1]
            parameter.copy_(noise / d_in**0.5)
