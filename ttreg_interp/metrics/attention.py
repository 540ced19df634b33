"""Where attention goes: the share each key receives, how spread a row is, and sinks.

A pattern is attention after the softmax (`blocks.{l}.attn.hook_pattern`). Rows may sum to less than
one when a key is left out of them, as the key of an attention bias is.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ttreg_interp.errors import DataError, LayoutError
from ttreg_interp.metrics._values import check_finite


def attention_received(
    pattern: Float[Tensor, "batch head query key"], causal: bool = False
) -> Float[Tensor, "batch head key"]:
    """Mean attention that each key receives from the queries that can see it.

    alpha_k = 1/T sum_q A_qk, and under a causal mask 1/(T - k) sum_{q >= k} A_qk, k from 0.

    Args:
        pattern: attention after the softmax.
        causal: divide by the number of queries that see a key, instead of by all.

    Returns:
        alpha, in float64; in [0, 1].

    Raises:
        DataError: no values, NaN, or values outside [0, 1], or attention to a later key although `causal`.
        LayoutError: `causal` although queries and keys are not the same tokens.

    Source:
        arXiv 2410.10781, section 3, importance score alpha_k.

    Example:
        >>> attention_received(torch.tensor([[[[1.0, 0.0], [0.5, 0.5]]]])).tolist()
        [[[0.75, 0.25]]]
    """
    _check_probabilities(pattern)
    total = pattern.sum(dim=-2, dtype=torch.float64)
    queries, keys = pattern.shape[-2:]
    if not causal:
        return total / queries
    if queries != keys:
        raise LayoutError(
            f"A causal pattern has as many queries as keys; found {queries} and {keys}. "
            "Leave the keys that are no tokens (an attention bias) out."
        )
    if pattern.triu(1).any():
        raise DataError("Found attention to a later key; this pattern is not causal.")
    return total / torch.arange(keys, 0, -1, dtype=total.dtype, device=total.device)


def attention_entropy(rows: Float[Tensor, "*rows key"]) -> Float[Tensor, "*rows"]:
    """Entropy of attention rows, such as the [CLS] row `pattern[:, :, 0]`: -sum_k p_k ln p_k.

    Args:
        rows: attention after the softmax.

    Returns:
        Nats, in float64: 0 for one key, ln(keys) for uniform attention.

    Raises:
        DataError: no values, NaN, or values outside [0, 1].

    Example:
        >>> attention_entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).tolist()
        [0.0, 0.693...]
    """
    _check_probabilities(rows)
    return torch.special.entr(rows.double()).sum(dim=-1)


def attention_mass(
    rows: Float[Tensor, "batch *rows key"], keys: Bool[Tensor, " key"] | Bool[Tensor, "batch key"]
) -> Float[Tensor, "batch *rows"]:
    """Attention that falls on a set of keys: sum of p_k over the keys marked True.

    Args:
        rows: attention after the softmax, e.g. a pattern or its [CLS] row.
        keys: the set, one for all images (registers) or one per image (outlier tokens).

    Returns:
        The mass, in float64.

    Raises:
        DataError: no values, NaN, or values outside [0, 1].

    Example:
        >>> attention_mass(torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([True, False, True])).tolist()
        [0.75]
    """
    _check_probabilities(rows)
    per_image = keys if keys.ndim == 2 else keys.expand(rows.shape[0], -1)
    return torch.einsum("b...k, bk -> b...", rows.double(), per_image.double())


@dataclass(frozen=True, eq=False)
class SinkRate:
    """Share of (layer, head) in which a key is an attention sink, with what the share depends on."""

    per_image: Float[Tensor, "batch key"]
    """The share for each image and key."""
    epsilon: float
    """A key is a sink of a head if it receives more than this mean attention."""
    tokens: int
    """Keys in all; received attention shrinks as they grow, so rates compare at equal counts only."""

    @property
    def per_key(self) -> Float[Tensor, " key"]:
        """Mean over images."""
        return self.per_image.mean(dim=0)

    @property
    def best_key(self) -> int:
        """The key with the highest rate, the first of them if several."""
        return int((self.per_key == self.per_key.max()).nonzero()[0])

    def __str__(self) -> str:
        rate = float(self.per_key[self.best_key])
        return f"{rate:.1%} at key {self.best_key} (epsilon {self.epsilon}, {self.tokens} tokens)"


def sink_rate(received: Float[Tensor, "layer batch head key"], *, epsilon: float) -> SinkRate:
    """How many heads use a key as a sink: Sink_k = 1/(L H) sum_{l,h} [alpha_k(l, h) > epsilon].

    No epsilon follows from theory; the rate falls as it grows, so it must be chosen and told.

    Args:
        received: `attention_received` of every layer, stacked.
        epsilon: 0.3 in the source, at 64 tokens under a causal mask.

    Returns:
        The rate of every image and key.

    Raises:
        DataError: no values, NaN, or values outside [0, 1], or an epsilon outside.

    Source:
        arXiv 2410.10781, section 3, the threshold-based metric Sink_k^epsilon.

    Example:
        >>> received = torch.tensor([[0.8, 0.1, 0.1], [0.3, 0.4, 0.3]]).view(1, 1, 2, 3)
        >>> print(sink_rate(received, epsilon=0.5))
        50.0% at key 0 (epsilon 0.5, 3 tokens)
    """
    if not 0 <= epsilon < 1:
        raise DataError(f"epsilon is a share of attention in [0, 1); found {epsilon}.")
    _check_probabilities(received)
    per_image = (received > epsilon).double().mean(dim=(0, 2))
    return SinkRate(per_image, epsilon, tokens=received.shape[-1])


def _check_probabilities(pattern: Float[Tensor, "*any"]) -> None:
    check_finite(pattern, "attention")
    low, high = pattern.amin().item(), pattern.amax().item()
    # half precision may round a probability to a little above one
    if low < 0 or high > 1.01:
        raise DataError(
            f"Attention lies in [0, 1]; found values from {low:.3g} to {high:.3g}. Give the pattern "
            "after the softmax (hook_pattern), not the scores before it (hook_attn_scores)."
        )
