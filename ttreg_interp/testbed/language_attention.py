"""Attention kernels for the testbed language model, by transformers' attention interface.

All take scores s of the visible keys and give a pattern p; what they do to attention sinks is the
question of arXiv 2410.13835, 2410.10781 and 2306.12929.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from ttreg_interp.errors import UnsupportedModelError

Kernel = Literal["softmax", "softmax_off_by_one", "relu", "sigmoid", "clipped", "gated", "bias"]
Scores = Float[Tensor, "batch head query key"]
Heads = Float[Tensor, "batch head token d_head"]

STRETCH = 1.0
"""Clipped softmax: gamma = -STRETCH / number of keys (2306.12929, equation 4)."""


def softmax_off_by_one(scores: Scores) -> Scores:
    """p = exp(s) / (1 + sum exp(s)): attention may be less than one."""
    return pad(scores, (1, 0)).softmax(dim=-1)[..., 1:]


def relu(scores: Scores) -> Scores:
    """p = max(s, 0) / number of visible keys; nothing competes."""
    seen = torch.isfinite(scores)
    return torch.where(seen, scores, 0).relu() / seen.sum(dim=-1, keepdim=True)


def sigmoid(scores: Scores) -> Scores:
    """p = 1 / (1 + exp(-s)), not normalised."""
    return scores.sigmoid()


def clipped(scores: Scores) -> Scores:
    """p = clip((1 - gamma) softmax(s) + gamma, 0, 1): exact zeros at finite scores."""
    gamma = -STRETCH / torch.isfinite(scores).sum(dim=-1, keepdim=True)
    return ((1 - gamma) * scores.softmax(dim=-1) + gamma).clamp(0, 1) * torch.isfinite(scores)


PATTERNS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda scores: scores.softmax(dim=-1),
    "softmax_off_by_one": softmax_off_by_one,
    "relu": relu,
    "sigmoid": sigmoid,
    "clipped": clipped,
    "gated": lambda scores: scores.softmax(dim=-1),
    "bias": lambda scores: scores.softmax(dim=-1),
}
"""Kernel -> pattern of scores, -inf where a key is not visible."""


def use_kernel(model: Any, kernel: str) -> None:
    """Give a GPT-2 of transformers another attention, with new parameters where the kernel has any.

    Raises:
        UnsupportedModelError: no such kernel.
    """
    if kernel not in get_args(Kernel):
        raise UnsupportedModelError(
            f"No attention kernel {kernel!r}; there are {', '.join(get_args(Kernel))}."
        )
    from transformers import AttentionInterface

    for block in model.transformer.h:
        _add_parameters(block.attn, kernel)
    if kernel == "softmax":
        model.set_attn_implementation("eager")
        return
    AttentionInterface.register(f"ttreg_{kernel}", INTERFACES[kernel])
    model.set_attn_implementation(f"ttreg_{kernel}")


def _add_parameters(attn: Any, kernel: str) -> None:
    shape = (attn.num_heads, attn.head_dim)
    if kernel == "gated":
        attn.gate_weight = nn.Parameter(torch.zeros(shape))
        attn.gate_bias = nn.Parameter(torch.zeros(shape[0]))
    if kernel == "bias":
        attn.k_bias = nn.Parameter(torch.randn(shape) * 0.02)
        attn.v_bias = nn.Parameter(torch.randn(shape) * 0.02)


def _interface(kernel: str) -> Callable[..., tuple[Tensor, Tensor]]:
    def attend(
        module: Any, query: Heads, key: Heads, value: Heads, attention_mask: Any = None, **_: Any
    ) -> tuple[Float[Tensor, "batch token head d_head"], Scores]:
        """Heads and pattern; the pattern without the column of k'."""
        if kernel == "bias":
            key, value = (
                torch.cat((added[:, None].expand(len(query), -1, -1, -1), rows), dim=2)
                for added, rows in ((module.k_bias, key), (module.v_bias, value))
            )
        pattern = PATTERNS[kernel](_causal_scores(query, key))
        heads = pattern @ value
        if kernel == "gated":
            logits = (query * module.gate_weight[:, None]).sum(dim=-1) + module.gate_bias[:, None]
            heads = heads * 2 * logits.sigmoid()[..., None]
        return heads.transpose(1, 2), pattern[..., -query.shape[2] :]

    return attend


def _causal_scores(query: Heads, key: Tensor) -> Scores:
    """Scores, -inf for keys that come later; keys in front of the tokens are seen by all."""
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    in_front = key.shape[2] - query.shape[2]
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1 + in_front)
    return scores.masked_fill(later, float("-inf"))


INTERFACES = {kernel: _interface(kernel) for kernel in PATTERNS}
"""Kernel -> attention function of transformers."""
