"""Additive attention masks: the one place that knows that an attention bias stands in front."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from ttreg_interp.errors import InterventionError

AttentionMask = Float[Tensor, "_ _ query key"]
"""`attn.hook_mask`, [image, head, query, key]: added to the scores; 1 where all share it."""
Chosen = Bool[Tensor, "_ _"]
"""Chosen tokens, [image, token]; 1 where all images share them."""


def key_columns(tokens: Chosen, n_keys: int) -> Bool[Tensor, "_ key"]:
    """Chosen tokens as columns of attention: keys that are no tokens stand in front of them."""
    return pad(tokens, (n_keys - tokens.shape[-1], 0))


def hide(mask: AttentionMask, hidden: Bool[Tensor, "_ _ query key"]) -> AttentionMask:
    """`mask` with -inf where `hidden`.

    Raises:
        InterventionError: a query is left without any key.
    """
    mask = mask.masked_fill(hidden, float("-inf"))
    if torch.compiler.is_compiling():  # compilers and exporters cannot follow a look at values
        return mask
    if bool((mask == float("-inf")).all(dim=-1).any()):
        raise InterventionError(
            "A query is left without any key to attend to, so that its softmax is 0 / 0. Leave it "
            "one, e.g. itself, [CLS], or an attention bias; or knock attention out with "
            "renormalise=False."
        )
    return mask


def hide_keys(mask: AttentionMask, tokens: Chosen, causal: bool = False) -> AttentionMask:
    """`mask` with -inf on the columns of chosen tokens, for every query and head.

    Under a causal mask the first of them may see nothing but itself: hidden tokens keep their own
    key there, which no other token sees.
    """
    columns = key_columns(tokens, mask.shape[-1])[:, None, None, :]
    hidden = columns.expand(-1, 1, mask.shape[2], -1)
    if causal:
        n_queries, n_keys = mask.shape[-2:]
        own = torch.ones(n_queries, n_keys, dtype=torch.bool, device=mask.device)
        hidden = hidden & ~own.triu(n_keys - n_queries).tril(n_keys - n_queries)
    return hide(mask, hidden)


def weigh_keys(mask: AttentionMask, tokens: Chosen, logit: float) -> AttentionMask:
    """`mask` with `logit` added on the columns of chosen tokens, for every query and head."""
    columns = key_columns(tokens, mask.shape[-1])[:, None, None, :]
    return mask + columns.to(mask.dtype) * logit
