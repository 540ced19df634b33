r"""The closed-form model under RMSNorm or LayerNorm before every reader.

A norm bounds the logits, so an outlier alone no longer makes a sink. With $\hat u = u_2/\lVert u_2\rVert$

$$W_Q = I,\; b_Q = \rho\,\hat u, \qquad W_K = I + \kappa\,\hat u\hat u^\top, \qquad
  W_V = I - \delta\,\hat u\hat u^\top, \qquad W_O = I, \qquad \text{scale } \sqrt{d},$$

the no-op needs a key gain $\kappa$ (identity Q and K cannot sink) and a value drain $\delta = 1$
(what is left of the sink's value shrinks the next norm's scale). See `docs/concepts/noop.md`.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.theory.assumptions import Normal
from ttreg_interp.theory.noop import CLS, REGISTER, NoOpModel
from ttreg_interp.theory.parts import (
    MLP,
    Attention,
    NormKind,
    TheoryError,
    cast,
    centred,
    norm_scale,
    normalise,
)


@dataclass(frozen=True)
class NormSetting:
    """Sizes, geometry and assumptions of one random closed-form model with norms."""

    norm: NormKind = "rms"
    """`rms` or `layer`."""
    d_model: int = 16
    """Width of the residual stream, at least 5."""
    neurons: int = 32
    """Hidden units of each MLP."""
    tokens: int = 6
    """[CLS], patches and the sink together."""
    outputs: int = 3
    """Outputs of the head."""
    key_gain: float = 12.0
    """kappa: how much more the keys read of the sink direction."""
    query_bias: float = 1.0
    """rho: how much of the sink direction every query has, whatever the token holds."""
    drain: float = 1.0
    """delta: the share of the sink direction that the values do not read."""
    alignment: float = 0.3
    """Every other token's part along the sink direction."""
    content: float = 1.0
    """Norm of every other token's part outside the plane of u1 and u2, roughly."""
    sink_content: float = 0.5
    """The same of the sink token. A register has none."""
    zero_mean: bool = True
    """Whether u2 has mean zero. LayerNorm turns any other u2 out of the kernels; RMSNorm does not."""

    def __post_init__(self):
        requirements = [
            (self.norm in ("rms", "layer"), f"unknown norm {self.norm!r}; allowed: 'rms', 'layer' (without a norm: assumptions.draw)"),
            (self.d_model >= 5, f"d_model={self.d_model} leaves no room beside u1, u2 and the mean; use d_model >= 5"),
            (self.neurons >= 2 and self.outputs >= 1 and self.tokens >= 3,
             f"found neurons={self.neurons}, outputs={self.outputs}, tokens={self.tokens}; use at least 2, 1 and 3"),
            (0 <= self.drain <= 1, f"found drain={self.drain}; allowed: 0 (values read the sink direction) to 1 (they do not)"),
            (self.key_gain >= 0 and self.content > 0,
             f"found key_gain={self.key_gain}, content={self.content}; key_gain must not be negative, content must be positive"),
        ]  # fmt: skip
        problem = next((text for ok, text in requirements if not ok), None)
        if problem:
            raise TheoryError(problem)


def draw_normed(
    setting: NormSetting | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> NoOpModel:
    """A random closed-form model with norms, in the gain form.

    Args:
        setting: sizes, geometry and assumptions; `NormSetting()` if None.
        seed: of the random weights and tokens.
        dtype: precision of the model.

    Returns:
        The model; the strength of its methods is the norm of u2.

    Example:
        >>> model = draw_normed(NormSetting(key_gain=40.0))
        >>> near, far = model.error(torch.tensor([1e3, 1e4]))
        >>> round(float(near / far))
        10
    """
    s, normal = setting or NormSetting(), Normal(seed)
    ones = torch.full((s.d_model, 1), s.d_model**-0.5, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([ones, normal(s.d_model, 2)], dim=1))[0]
    u1, u = basis[:, 1], basis[:, 2]
    content = torch.eye(s.d_model, dtype=torch.float64) - basis @ basis.T
    if not s.zero_mean:
        u = (u + ones[:, 0]) / math.sqrt(2)
    blind = torch.eye(s.d_model, dtype=torch.float64) - torch.outer(u1, u1) - torch.outer(u, u)
    scale = s.d_model**-0.5
    model = NoOpModel(
        first=_first_mlp(s, content, u1, u, normal),
        attention=_sink_attention(s, u),
        last=_mlp(
            blind @ normal(s.d_model, s.neurons, scale=scale),
            normal(s.neurons, s.d_model, scale=s.neurons**-0.5),
        ),
        head=blind @ normal(s.d_model, s.outputs, scale=scale),
        rest=_tokens(s, content, u, normal),
        sinks=torch.eye(s.tokens, dtype=torch.float64)[-1],
        form="gain",
        norm=s.norm,
    )
    return cast(model, dtype)


def _mlp(w_in: Tensor, w_out: Tensor) -> MLP:
    return MLP(w_in, w_out, torch.zeros_like(w_in[0]), torch.zeros_like(w_out[0]), "relu")


def _first_mlp(s: NormSetting, content: Tensor, u1: Tensor, u: Tensor, normal: Normal) -> MLP:
    """The register neuron reads u1 and writes u; the others read and write content."""
    w_in = content @ normal(s.d_model, s.neurons, scale=s.d_model**-0.5)
    w_out = normal(s.neurons, s.d_model, scale=s.neurons**-0.5) @ content
    w_in[:, 0], w_out[0] = u1, u
    return _mlp(w_in, w_out)


def _sink_attention(s: NormSetting, u: Tensor) -> Attention:
    """One head with key gain, query bias and value drain along u."""
    eye, along = torch.eye(s.d_model, dtype=u.dtype), torch.outer(u, u)
    w_q, w_k, w_v, w_o = (
        w.unsqueeze(0) for w in (eye, eye + s.key_gain * along, eye - s.drain * along, eye)
    )
    return Attention(w_q, w_k, w_v, w_o, s.query_bias * u.unsqueeze(0), scale=math.sqrt(s.d_model))


def _tokens(s: NormSetting, content: Tensor, u: Tensor, normal: Normal) -> Tensor:
    rest = normal(s.tokens, s.d_model, scale=s.d_model**-0.5) @ content
    return torch.cat([s.content * rest[:-1] + s.alignment * u, s.sink_content * rest[-1:]])


def sink_ceiling(cosine: Float[Tensor, " batch"], d_model: int) -> Float[Tensor, " batch"]:
    r"""The most that identity Q and K let a query give to a sink, at any outlier norm.

    $$p_{qs} \le \frac{1}{1 + e^{\sqrt{d}\,(1 - \cos(x_q, x_s))}} \le \tfrac12.$$

    Args:
        cosine: between the normalised query token and the normalised sink.
        d_model: width of the residual stream.

    Returns:
        The bound on the attention weight.

    Example:
        >>> sink_ceiling(torch.tensor([1.0]), 16)
        tensor([0.5000])
    """
    return torch.sigmoid(-math.sqrt(d_model) * (1 - cosine))


def rate_in_key_gain(model: NoOpModel) -> float:
    r"""The rate of the register's error $e^{-c\kappa}$ in the key gain, at any outlier norm.

    $$c = \frac{(x_q + \rho\hat u)\cdot\hat u}{\sqrt d}\,\big(\sqrt d - \max_{i\ne r} x_i\cdot\hat u\big),
      \qquad x = N(x_1).$$

    It is the [CLS] query's part along the sink direction, times how much more of that direction the
    register has than any other token.

    Example:
        >>> round(rate_in_key_gain(draw_normed(NormSetting(alignment=0.0, query_bias=0.7))), 4)
        0.7
    """
    u = model.u2 / model.u2.norm()
    along = (
        normalise(model.first_block(torch.ones(1, dtype=u.dtype), "register"), model.norm)[0] @ u
    )
    query = along[CLS] + model.attention.b_q[0] @ u
    others = torch.cat([along[:REGISTER], along[REGISTER + 1 :]])
    return float(query * (along[REGISTER] - others.max()) / model.attention.scale)


def read_at_scales_of(
    model: NoOpModel, x2: Float[Tensor, "*rows d_model"], x1: Float[Tensor, "*rows d_model"]
) -> Float[Tensor, "*rows output"]:
    """The last MLP and the head on x2, with every norm held at the scale that it has on x1.

    With it, a value that is not drained does no harm: all that it does is change those scales.

    Example:
        >>> model = draw_normed()
        >>> x1 = model.first_block(torch.tensor([5.0]))
        >>> bool((read_at_scales_of(model, x1, x1) - model.read(x1)).abs().max() < 1e-12)
        True
    """

    def last_mlp(normed: Tensor) -> Tensor:
        return model.last.write(model.last.neurons(normed))

    clean = x1 + last_mlp(normalise(x1, model.norm))
    x3 = x2 + last_mlp(centred(x2, model.norm) / norm_scale(x1, model.norm))
    return centred(x3, model.norm) / norm_scale(clean, model.norm) @ model.head
