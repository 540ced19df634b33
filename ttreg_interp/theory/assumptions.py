"""Random instances of the closed-form model, with every assumption a switch.

`draw(Setting(...), seed)` keeps all of them; `Assumptions(name=False)` breaks one, and the model
then fails in the way that the field's docstring says (checked in `tests/theory`).
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.theory.noop import Form, NoOpModel
from ttreg_interp.theory.parts import (
    ACTIVATIONS,
    MLP,
    Activation,
    Attention,
    TheoryError,
    cast,
    identity_attention,
)

PLANE = 2
"""Dimensions of span(u1, u2)."""


@dataclass(frozen=True)
class Assumptions:
    """What the no-op rests on. Set one to False to see it fail."""

    rank_deficient: bool = True
    """The last MLP's input map and the head are projected so that they lose span(u1, u2).
    Off: they stay generic, and u1, u2 are chosen in the kernel that narrow widths leave;
    wide ones leave none, which is an error unless the four kernel switches are off as well."""
    mlp_blind_to_u1: bool = True
    """u1 in the kernel of the last MLP. Off: error grows with beta (token form) or stays (gain form)."""
    mlp_blind_to_u2: bool = True
    """u2 in the kernel of the last MLP. Off: error grows with the strength."""
    head_blind_to_u1: bool = True
    """u1 in the kernel of the head. Off: error grows with beta (token form) or stays (gain form)."""
    head_blind_to_u2: bool = True
    """u2 in the kernel of the head. Off: error grows with the strength."""
    aligned: bool = True
    """Every token has a positive dot product with the sink. Off: an anti-sink; attention ignores it
    and goes on reading the other tokens."""
    every_head_aligned: bool = True
    """So in every head. Off: head 0 keeps reading the other tokens."""
    outputs_stay_blind: bool = True
    """Value and output maps send span(u1, u2) into itself or to zero. Off: error grows."""
    others_silent_on_u1: bool = True
    """The first MLP's other neurons do not read u1. Off: error grows with beta (token form) or stays."""
    others_silent_on_nothing: bool = True
    """The first MLP's other neurons do not fire on an empty token: phi(b) = 0. Off: error stays."""
    sink_is_empty: bool = True
    """The sink token holds nothing but u1. Off: its content leaks into every token; error stays."""
    sink_fires_hardest: bool = True
    """No token with content drives the register neuron as hard as the sink does. Off: patch 1
    becomes the sink, and its content leaks; error stays."""


@dataclass(frozen=True)
class Setting:
    """Sizes and geometry of one random closed-form model."""

    d_model: int = 16
    """Width of the residual stream, at least 4."""
    neurons: int = 32
    """Hidden units of each MLP, the register neuron included."""
    tokens: int = 6
    """[CLS], patches and sinks together."""
    outputs: int = 3
    """Outputs of the head."""
    heads: int = 1
    """Attention heads; with identity maps there is one."""
    attention: Literal["identity", "generic"] = "identity"
    """Q = K = V = O = I without scale, or random maps per head scaled by sqrt(d_head)."""
    form: Form = "token"
    """`token`: x_s = beta u1 and beta grows. `gain`: x_s = u1 and the norm of u2 grows."""
    activation: Activation = "relu"
    """The nonlinearity of both MLPs."""
    biases: bool = False
    """Random MLP biases, of the kind that does no harm."""
    sinks: tuple[float, ...] = (1.0,)
    """How much u1 each sink holds, in units of the strength; one number a sink."""
    u1_norm: float = 1.0
    """Norm of u1."""
    u2_norm: float = 1.0
    """Norm of u2 (at strength one, in the gain form)."""
    angle: float = math.pi / 3
    """Angle between u1 and u2 in radians, in (0, pi/2]."""
    alignment: float = 0.3
    """Size of every other token's part along the plane of u1 and u2: along u1 in the token form
    (so that it survives zeroing the neuron), orthogonal to u1 in the gain form (so that the
    neuron is silent on it). Its sign is `Assumptions.aligned`."""
    content: float = 1.0
    """Norm of every other token's part outside that plane, roughly."""
    assumptions: Assumptions = Assumptions()
    """Which assumptions hold."""

    def __post_init__(self):
        problem = next((text for ok, text in _requirements(self) if not ok), None)
        if problem:
            raise TheoryError(problem)

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.d_model // self.heads

    @property
    def kernel_needed(self) -> bool:
        """Whether any kernel switch is on."""
        keep = self.assumptions
        return (
            keep.mlp_blind_to_u1
            or keep.mlp_blind_to_u2
            or keep.head_blind_to_u1
            or keep.head_blind_to_u2
        )


def draw(
    setting: Setting | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> NoOpModel:
    """A random closed-form model that keeps a setting's assumptions and breaks the others.

    Args:
        setting: sizes, geometry and assumptions; `Setting()` if None.
        seed: of the random weights and tokens, which are the same in every precision and do not
            depend on which assumptions hold.
        dtype: precision of the model. float32 has an error floor that grows with the strength.

    Returns:
        The model, to be run at any strength.

    Source: arXiv 2506.08010, appendix A.1. The projections and the switches are ours.

    Example:
        >>> draw(Setting(d_model=8, tokens=4), seed=1).rest.shape
        torch.Size([4, 8])
    """
    setting, normal = setting or Setting(), Normal(seed)
    keep, d_model = setting.assumptions, setting.d_model
    w_last = normal(d_model, setting.neurons, scale=d_model**-0.5)
    head = normal(d_model, setting.outputs, scale=d_model**-0.5)
    geometry = _geometry(setting, torch.cat([w_last, head], dim=1), normal)
    if keep.rank_deficient:
        w_last, head = geometry.outside @ w_last, geometry.outside @ head
    w_last = w_last + geometry.leak(
        keep.mlp_blind_to_u1, keep.mlp_blind_to_u2, normal(PLANE, setting.neurons)
    )
    head = head + geometry.leak(
        keep.head_blind_to_u1, keep.head_blind_to_u2, normal(PLANE, setting.outputs)
    )
    model = NoOpModel(
        first=_first_mlp(setting, geometry, normal),
        attention=_attention(setting, geometry, normal),
        last=_last_mlp(setting, w_last, normal),
        head=head,
        rest=_tokens(setting, geometry, normal),
        sinks=_sinks(setting),
        form=setting.form,
    )
    return cast(model, dtype)


class Normal:
    """Seeded normal draws, in float64 whatever the model's precision."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def near_one(self, *shape: int) -> Tensor:
        """Positive factors between 0.5 and 1.5."""
        return 1 + 0.5 * self(*shape).tanh()


@dataclass(frozen=True, eq=False)
class Geometry:
    """span(u1, u2) and what lies outside of it."""

    plane: Float[Tensor, "d_model plane"]
    """Orthonormal basis (e1, e2): e1 along u1, e2 on the side of u2."""
    u1: Float[Tensor, " d_model"]
    """What the register neuron reads."""
    u2: Float[Tensor, " d_model"]
    """What it writes."""
    lean: Float[Tensor, " d_model"]
    """The part in the plane by which the other tokens are aligned with the sink, or against it."""

    @property
    def outside(self) -> Float[Tensor, "d_model d_model"]:
        """The projector that removes the plane."""
        return torch.eye(len(self.u1), dtype=self.plane.dtype) - self.plane @ self.plane.T

    def leak(
        self, blind_to_u1: bool, blind_to_u2: bool, rows: Float[Tensor, "plane columns"]
    ) -> Float[Tensor, "d_model columns"]:
        """What to add to a blind map so that u1 or u2, and only it, is read into the given row."""
        duals = torch.linalg.pinv(torch.stack([self.u1, self.u2]))
        return duals @ (torch.tensor([[not blind_to_u1], [not blind_to_u2]]) * rows)


def _geometry(setting: Setting, readers: Tensor, normal: Normal) -> Geometry:
    """A random plane, or one inside the kernel that the readers leave."""
    directions = normal(setting.d_model, PLANE)
    if setting.kernel_needed and not setting.assumptions.rank_deficient:
        full, _, _ = torch.linalg.svd(readers, full_matrices=True)
        kernel = full[:, readers.shape[1] :]
        directions = kernel @ kernel.T @ directions
    e1, e2 = torch.linalg.qr(directions)[0].T
    side = math.cos(setting.angle) * e1 + math.sin(setting.angle) * e2
    lean = setting.alignment * (e1 if setting.form == "token" else e2)
    return Geometry(
        plane=torch.stack([e1, e2], dim=1),
        u1=setting.u1_norm * e1,
        u2=setting.u2_norm * side,
        lean=lean if setting.assumptions.aligned else -lean,
    )


def _first_mlp(setting: Setting, geometry: Geometry, normal: Normal) -> MLP:
    """The register neuron, and other neurons that live outside the plane."""
    keep, d_model, neurons = setting.assumptions, setting.d_model, setting.neurons
    w_in = geometry.outside @ normal(d_model, neurons, scale=d_model**-0.5)
    w_in = w_in + geometry.leak(keep.others_silent_on_u1, True, normal(PLANE, neurons))
    w_out = normal(neurons, d_model, scale=neurons**-0.5) @ geometry.outside
    w_in[:, 0], w_out[0] = geometry.u1, geometry.u2
    # A relu neuron with a negative bias is silent on an empty token; the register neuron's is
    # small enough to leave it firing on every sink.
    b_in = -normal(neurons).abs() * setting.biases
    b_in[0] = -0.25 * setting.u1_norm**2 * min(setting.sinks) * setting.biases
    if not keep.others_silent_on_nothing:
        b_in[1:] = normal(neurons - 1).abs()
    # b_out reaches the sink as well, so it has to lie in the plane.
    return MLP(w_in, w_out, b_in, 0.5 * geometry.lean * setting.biases, setting.activation)


def _last_mlp(setting: Setting, w_in: Tensor, normal: Normal) -> MLP:
    """Any MLP behind a given input map; its biases are free."""
    w_out = normal(setting.neurons, setting.d_model, scale=setting.neurons**-0.5)
    b_in, b_out = normal(setting.neurons), normal(setting.d_model)
    return MLP(w_in, w_out, b_in * setting.biases, b_out * setting.biases, setting.activation)


def _attention(setting: Setting, geometry: Geometry, normal: Normal) -> Attention:
    """Identity or generic maps, then the two switches on heads and outputs."""
    base = identity_attention(setting.d_model)
    if setting.attention == "generic":
        base = _generic_attention(setting, geometry, normal)
    keep, plane = setting.assumptions, geometry.plane
    w_q, w_o = base.w_q, base.w_o
    if not keep.every_head_aligned:
        reflected = w_q[:1] - 2 * plane @ (plane.T @ w_q[:1])
        w_q = torch.cat([reflected, w_q[1:]])
    if not keep.outputs_stay_blind:
        content = normal(setting.heads, PLANE, setting.d_model, scale=0.3) @ geometry.outside
        w_o = w_o + (plane.T @ base.w_v).mT @ content
    return replace(base, w_q=w_q, w_o=w_o)


def _generic_attention(setting: Setting, geometry: Geometry, normal: Normal) -> Attention:
    """Random heads whose last two channels carry the plane, each with its own gain on it."""
    heads, d_model, d_head = setting.heads, setting.d_model, setting.d_head
    outside, plane = geometry.outside, geometry.plane.expand(heads, d_model, PLANE)

    def reading() -> Tensor:
        return outside @ normal(heads, d_model, d_head - PLANE, scale=d_model**-0.5)

    w_q, w_v = (torch.cat([reading(), plane], dim=2) for _ in "qv")
    w_k = torch.cat([reading(), plane * normal.near_one(heads, 1, 1)], dim=2)
    content = normal(heads, d_head - PLANE, d_model, scale=d_head**-0.5) @ outside
    w_o = torch.cat([content, normal(heads, PLANE, PLANE) @ plane.mT], dim=1)
    b_q = normal(heads, d_head) * setting.biases
    b_q[:, -PLANE:] = 0
    return Attention(w_q, w_k, w_v, w_o, b_q, scale=math.sqrt(d_head))


def _tokens(setting: Setting, geometry: Geometry, normal: Normal) -> Tensor:
    """The tokens at strength zero: content and lean, but nothing in an empty sink."""
    rows = setting.tokens - len(setting.sinks)
    content = normal(setting.tokens, setting.d_model, scale=setting.content * setting.d_model**-0.5)
    content = content @ geometry.outside
    lean = normal.near_one(rows, 1) * geometry.lean
    empty = torch.zeros_like(content[rows:])
    sinks = empty if setting.assumptions.sink_is_empty else content[rows:]
    return torch.cat([content[:rows] + lean, sinks])


def _sinks(setting: Setting) -> Tensor:
    """How much u1 each row gains; a rival is a patch that gains twice as much as the best sink."""
    weights = torch.zeros(setting.tokens, dtype=torch.float64)
    weights[-len(setting.sinks) :] = torch.tensor(setting.sinks, dtype=torch.float64)
    if not setting.assumptions.sink_fires_hardest:
        weights[1] = 2 * max(setting.sinks)
    return weights


def _requirements(s: Setting) -> list[tuple[bool, str]]:
    """What must hold for the construction to exist, and what to say when it does not."""
    kernel = s.d_model - s.neurons - s.outputs
    rows = len(s.sinks) + 2
    return [
        (s.form in ("token", "gain"), f"unknown form {s.form!r}; allowed: 'token', 'gain'"),
        (s.attention in ("identity", "generic"),
         f"unknown attention {s.attention!r}; allowed: 'identity', 'generic'"),
        (s.activation in ACTIVATIONS, f"unknown activation {s.activation!r}; allowed: {', '.join(ACTIVATIONS)}"),
        (s.d_model >= 2 * PLANE,
         f"d_model={s.d_model} leaves no room beside the plane of u1 and u2; use d_model >= {2 * PLANE}"),
        (s.neurons >= 2 and s.outputs >= 1,
         f"found neurons={s.neurons}, outputs={s.outputs}; use at least 2 neurons and 1 output"),
        (len(s.sinks) > 0 and min(s.sinks, default=0) > 0,
         f"found sinks={s.sinks}; give one positive number (its beta in units of the strength) for each sink"),
        (s.tokens >= rows,
         f"tokens={s.tokens} is too few for [CLS], a patch and {len(s.sinks)} sink(s); use tokens >= {rows}"),
        (s.heads >= 1 and s.d_model % max(s.heads, 1) == 0,
         f"d_model={s.d_model} does not split into heads={s.heads}; use a divisor of d_model"),
        (s.attention == "generic" or s.heads == 1,
         f"identity Q, K, V, O are one head of width d_model, found heads={s.heads}; use attention='generic'"),
        (s.attention == "identity" or s.d_head > PLANE,
         f"d_head={s.d_head} is taken up by the plane of u1 and u2; use fewer heads or d_model >= {3 * s.heads}"),
        (min(s.u1_norm, s.u2_norm) > 0,
         f"found u1_norm={s.u1_norm}, u2_norm={s.u2_norm}; both must be positive"),
        (0 < s.angle <= math.pi / 2,
         f"angle={s.angle:.4g} between u1 and u2; allowed: 0 < angle <= pi/2 (beyond, they work against each other)"),
        (s.alignment > 0 and s.content >= 0,
         f"found alignment={s.alignment}, content={s.content}; alignment must be positive, content not negative "
         "(to turn the tokens away from the sink: Assumptions(aligned=False))"),
        (not s.biases or s.activation == "relu",
         f"a neuron with a bias is silent on an empty token only with relu, found {s.activation!r}; "
         "use activation='relu' or biases=False"),
        (kernel >= PLANE or s.assumptions.rank_deficient or not s.kernel_needed,
         f"u1 and u2 need a kernel of {PLANE} dimensions, but generic maps of d_model={s.d_model} to "
         f"neurons={s.neurons} plus outputs={s.outputs} leave {max(kernel, 0)}; use neurons + outputs <= "
         f"d_model - {PLANE}, or Assumptions(rank_deficient=True) to impose it"),
    ]  # fmt: skip
