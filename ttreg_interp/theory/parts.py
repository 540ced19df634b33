"""The parts of the closed-form model: an MLP, an attention layer, a key/value pair, a norm.

Weights multiply from the right (`x @ W`), so that the kernel of a reading matrix is the set of
`u` with `u @ W == 0`: the kernel of the *transpose* in the paper's notation.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ttreg_interp.errors import TTRegError


class TheoryError(TTRegError):
    """A closed-form model that cannot exist, or a question that it has no answer to."""


Activation = Literal["relu", "gelu", "silu", "softplus"]
NormKind = Literal["none", "rms", "layer"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "softplus": F.softplus,  # phi(0) = log 2: every unit fires on an empty token
}
"""phi(t) -> t for large t in all of them; phi(0) = 0 in all but softplus."""

NORM_EPS = 1e-12
"""Small enough to be invisible in float64, and it maps the zero token to zero."""


def normalise(x: Float[Tensor, "*rows d_model"], kind: NormKind) -> Float[Tensor, "*rows d_model"]:
    r"""RMSNorm, LayerNorm (both without affine part: it folds into the next weights), or neither.

    $$N(x) = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}, \qquad \mu = 0 \text{ in RMSNorm.}$$

    Args:
        x: residual rows.
        kind: `none`, `rms` or `layer`.

    Returns:
        Rows of norm sqrt(d_model), unless `kind` is `none` or the row is zero.

    Example:
        >>> round(float(normalise(torch.tensor([[3.0, 4.0]]), "rms").norm() ** 2), 4)
        2.0
    """
    return x if kind == "none" else centred(x, kind) / norm_scale(x, kind)


def centred(x: Float[Tensor, "*rows d_model"], kind: NormKind) -> Float[Tensor, "*rows d_model"]:
    """Rows without their mean in LayerNorm, untouched in RMSNorm."""
    return x - x.mean(-1, keepdim=True) if kind == "layer" else x


def norm_scale(x: Float[Tensor, "*rows d_model"], kind: NormKind) -> Float[Tensor, "*rows 1"]:
    """What a norm divides a row by, after centring.

    Example:
        >>> float(norm_scale(torch.tensor([[3.0, 3.0]]), "rms"))
        3.0
    """
    return (centred(x, kind).square().mean(-1, keepdim=True) + NORM_EPS).sqrt()


@dataclass(frozen=True, eq=False)
class MLP:
    r"""One MLP: $\varphi(x W_\mathrm{in} + b_\mathrm{in}) W_\mathrm{out} + b_\mathrm{out}$."""

    w_in: Float[Tensor, "d_model neuron"]
    """Column n is what neuron n reads; column 0 of the first MLP is u1."""
    w_out: Float[Tensor, "neuron d_model"]
    """Row n is what neuron n writes; row 0 of the first MLP is u2."""
    b_in: Float[Tensor, " neuron"]
    """Bias before the nonlinearity."""
    b_out: Float[Tensor, " d_model"]
    """Bias added to every token, the sink included."""
    activation: Activation
    """The nonlinearity phi."""

    def neurons(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows neuron"]:
        """The hidden activations, after the nonlinearity."""
        return ACTIVATIONS[self.activation](x @ self.w_in + self.b_in)

    def write(self, a: Float[Tensor, "*rows neuron"]) -> Float[Tensor, "*rows d_model"]:
        """What given hidden activations add to the residual stream."""
        return a @ self.w_out + self.b_out


@dataclass(frozen=True, eq=False)
class KeyValue:
    r"""One key k' and value v' per head that no token carries: an explicit attention bias.

    $$\mathrm{softmax}\left(Q\,[K^\top\; k'] + [0\; \log\tau]\right)[V;\, v'].$$

    Source: arXiv 2506.08010, appendix A.2; the weight tau is ours.
    """

    key: Float[Tensor, "*batch head d_head"]
    """k', one per head (and per strength, where it is taken from a run)."""
    value: Float[Tensor, "*batch head d_head"]
    """v', likewise."""
    log_weight: float = 0.0
    """log tau: added to the logit of k'; as many copies of the token as tau says."""


@dataclass(frozen=True, eq=False)
class Attention:
    """One bidirectional attention layer without position."""

    w_q: Float[Tensor, "head d_model d_head"]
    """Query maps."""
    w_k: Float[Tensor, "head d_model d_head"]
    """Key maps."""
    w_v: Float[Tensor, "head d_model d_head"]
    """Value maps."""
    w_o: Float[Tensor, "head d_head d_model"]
    """Output maps."""
    b_q: Float[Tensor, "head d_head"]
    """Query bias: aligns every query with a direction, whatever the token holds."""
    scale: float
    """Logits are divided by it: 1 in the paper's model, sqrt(d_head) in practice."""

    def queries(
        self, x: Float[Tensor, "*batch token d_model"]
    ) -> Float[Tensor, "*batch head token d_head"]:
        """Queries of every token."""
        return x.unsqueeze(-3) @ self.w_q + self.b_q.unsqueeze(-2)

    def keys(
        self, x: Float[Tensor, "*batch token d_model"]
    ) -> Float[Tensor, "*batch head token d_head"]:
        """Keys of every token."""
        return x.unsqueeze(-3) @ self.w_k

    def values(
        self, x: Float[Tensor, "*batch token d_model"]
    ) -> Float[Tensor, "*batch head token d_head"]:
        """Values of every token."""
        return x.unsqueeze(-3) @ self.w_v

    def key_value(self, x: Float[Tensor, "*batch d_model"], log_weight: float = 0.0) -> KeyValue:
        """k' and v' of one token of the residual stream (already normalised, where there is a norm)."""
        rows = x.unsqueeze(-2)
        return KeyValue(self.keys(rows).squeeze(-2), self.values(rows).squeeze(-2), log_weight)

    def logits(
        self, x: Float[Tensor, "*batch token d_model"], bias: KeyValue | None = None
    ) -> Float[Tensor, "*batch head query key"]:
        """Attention scores before the softmax; with a bias, its key is the last one."""
        queries = self.queries(x)
        scores = queries @ self.keys(x).mT / self.scale
        if bias is None:
            return scores
        extra = queries @ bias.key.unsqueeze(-1) / self.scale + bias.log_weight
        return torch.cat([scores, extra], dim=-1)

    def __call__(
        self, x: Float[Tensor, "*batch token d_model"], bias: KeyValue | None = None
    ) -> tuple[Float[Tensor, "*batch token d_model"], Float[Tensor, "*batch head query key"]]:
        """The attention update and the pattern; with a bias, its key is the last one."""
        pattern, values = self.logits(x, bias).softmax(-1), self.values(x)
        if bias is not None:
            extra = bias.value.unsqueeze(-2).expand(*values.shape[:-2], 1, -1)
            values = torch.cat([values, extra], dim=-2)
        return (pattern @ values @ self.w_o).sum(-3), pattern


def identity_attention(d_model: int, dtype: torch.dtype = torch.float64) -> Attention:
    """One head with Q = K = V = O = I and no scale, as in the paper's model.

    Example:
        >>> identity_attention(4).w_q.shape
        torch.Size([1, 4, 4])
    """
    eye = torch.eye(d_model, dtype=dtype).unsqueeze(0)
    return Attention(eye, eye, eye, eye, torch.zeros(1, d_model, dtype=dtype), scale=1.0)


Part = TypeVar("Part")


def cast(part: Part, dtype: torch.dtype) -> Part:
    """A copy of a dataclass of tensors, and of the parts in it, in another precision.

    Example:
        >>> cast(identity_attention(4), torch.float32).w_q.dtype
        torch.float32
    """
    return _cast(part, dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: _cast(getattr(value, f.name), dtype) for f in fields(value)}
        )
    return value
