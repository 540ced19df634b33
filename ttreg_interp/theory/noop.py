r"""The closed-form model in which an outlier token turns attention into a no-op.

Two blocks, as in section 6 and appendix A.1 of arXiv 2506.08010:

    x0 --(+ first MLP)--> x1 --(+ attention)--> x2 --(+ last MLP)--> x3 --head--> output

| symbol | here | meaning |
|---|---|---|
| $u_1$ | `first.w_in[:, 0]` | what the register neuron reads |
| $u_2 = \lVert u_2\rVert v_2$ | `first.w_out[0]` | what it writes |
| $x_s = \beta u_1$ | rows with `sinks > 0` | the sink token; $\beta$ is the strength of the token form |
| $\tilde\alpha = \varphi(\beta\lVert u_1\rVert^2)$ | `first.neurons(x0)[s, 0]` | the register neuron on it |
| $c = x_\mathrm{cls}\cdot(u_1 + \lVert u_1\rVert^2 u_2)$ | `rate()` | the error falls as $e^{-c\beta}$ |

What each assumption does, and what happens without it, is in `docs/concepts/noop.md`;
`ttreg_interp.theory.assumptions.draw` makes models that keep or break them one by one.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ttreg_interp.theory.parts import MLP, Attention, KeyValue, NormKind, TheoryError, normalise

Form = Literal["token", "gain"]
Neuron = Literal["intact", "zeroed", "register"]

CLS, REGISTER = 0, 1
"""Rows of [CLS] and, in a run with `neuron="register"`, of the test-time register."""

FAR = 1e4
"""A strength at which every activation function has reached its asymptote."""


@dataclass(frozen=True, eq=False)
class Run:
    """One forward pass."""

    x1: Float[Tensor, "batch token d_model"]
    """Residual stream after the first MLP, where attention reads it."""
    pattern: Float[Tensor, "batch head query key"]
    """Attention pattern; with an attention bias its key comes last."""
    output: Float[Tensor, "batch token output"]
    """The head's output of every token; the model is read at row `CLS`."""


@dataclass(frozen=True, eq=False)
class NoOpModel:
    r"""Two blocks in which one neuron makes a sink, at any strength of that sink.

    The strength is $\beta$ in the token form ($x_s = \beta u_1$, weights fixed) and the factor
    on $u_2$ in the gain form ($x_s = u_1$ fixed). It is the batch axis of every method.

    Source: arXiv 2506.08010, section 6, Proposition 1 and Corollary 1.

    Example:
        >>> from ttreg_interp.theory.assumptions import Setting, draw
        >>> model = draw(Setting(), seed=0)
        >>> near, far = model.error(model.onset() + torch.tensor([10.0, 20.0]) / model.rate())
        >>> bool(abs((near / far).log() - 10) < 0.01)
        True
    """

    first: MLP
    """The penultimate MLP; its neuron 0 is the register neuron."""
    attention: Attention
    """The attention layer that should come to do nothing."""
    last: MLP
    """The last MLP, blind to u1 and u2."""
    head: Float[Tensor, "d_model output"]
    """The linear head, blind to u1 and u2."""
    rest: Float[Tensor, "token d_model"]
    """The tokens at strength zero: [CLS], patches, sinks."""
    sinks: Float[Tensor, " token"]
    """How much of u1 each token receives per unit of strength: zero for all but the sinks."""
    form: Form
    """What grows: the token or the neuron's output row."""
    norm: NormKind = "none"
    """The norm before each MLP, the attention layer and the head."""

    @property
    def u1(self) -> Float[Tensor, " d_model"]:
        """What the register neuron reads."""
        return self.first.w_in[:, 0]

    @property
    def u2(self) -> Float[Tensor, " d_model"]:
        """What the register neuron writes, at strength one."""
        return self.first.w_out[0]

    @property
    def is_sink(self) -> Bool[Tensor, " token"]:
        """The rows of the input that grow with the strength (token form) or drive the neuron."""
        return self.sinks > 0

    def tokens(self, strength: Float[Tensor, " batch"]) -> Float[Tensor, "batch token d_model"]:
        r"""The input: $x_s = \beta u_1$, the other tokens at rest."""
        check_strength(strength)
        beta = strength if self.form == "token" else torch.ones_like(strength)
        return self.rest + beta.to(self.rest)[:, None, None] * torch.outer(self.sinks, self.u1)

    def first_block(
        self, strength: Float[Tensor, " batch"], neuron: Neuron = "intact"
    ) -> Float[Tensor, "batch token d_model"]:
        r"""$x_1 = x_0 + \tilde\alpha\, u_2 + \dots$: tokens and what the first MLP adds to them."""
        x0 = self.tokens(strength)
        if neuron == "register":
            x0 = torch.cat([x0[:, :REGISTER], torch.zeros_like(x0[:, :1]), x0[:, REGISTER:]], dim=1)
        a = move_neuron(self.first.neurons(normalise(x0, self.norm)), neuron)
        if self.form == "gain":
            a = torch.cat([a[..., :1] * strength.to(a)[:, None, None], a[..., 1:]], dim=-1)
        return x0 + self.first.write(a)

    def read(self, x2: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows output"]:
        """The last MLP and the head, f(x2), on any rows of the residual stream."""
        x3 = x2 + self.last.write(self.last.neurons(normalise(x2, self.norm)))
        return normalise(x3, self.norm) @ self.head

    def finish(self, x1: Float[Tensor, "batch token d_model"], bias: KeyValue | None = None) -> Run:
        """Attention, last MLP and head, from a given residual stream."""
        update, pattern = self.attention(normalise(x1, self.norm), bias)
        return Run(x1, pattern, self.read(x1 + update))

    def run(
        self,
        strength: Float[Tensor, " batch"],
        neuron: Neuron = "intact",
        bias: KeyValue | None = None,
    ) -> Run:
        """The forward pass of one arm: the neuron intact, zeroed or moved to a register; a bias or none."""
        return self.finish(self.first_block(strength, neuron), bias)

    def error(
        self,
        strength: Float[Tensor, " batch"],
        neuron: Neuron = "intact",
        bias: KeyValue | None = None,
        query: int = CLS,
    ) -> Float[Tensor, " batch"]:
        r"""How much attention changes the output: zero is a perfect no-op.

        $$\lVert f(x_2) - f(x_1) \rVert_2 \text{ at one token}, \qquad x_2 = x_1 + \mathrm{Attn}(x_1).$$
        """
        run = self.run(strength, neuron, bias)
        return (run.output[:, query] - self.read(run.x1[:, query])).norm(dim=-1)

    def drive(self, neuron: Neuron = "intact") -> Float[Tensor, "sink d_model"]:
        r"""What each sink gains per unit of strength, $D = \partial x_{1,s} / \partial t$ at large t.

        $$D = u_1 + \lVert u_1\rVert^2 u_2 \text{ (token form)}, \qquad
          D = \varphi(\lVert u_1\rVert^2)\, u_2 \text{ (gain form)},$$

        and $D = u_1$ or $0$ with the neuron zeroed. A register counts as a sink.
        """
        far = torch.tensor([FAR, 2 * FAR], dtype=self.rest.dtype)
        below, above = self.first_block(far, neuron)[:, self._sink_rows(neuron)]
        return (above - below) / FAR

    def rate(self, neuron: Neuron = "intact", query: int = CLS) -> Float[Tensor, " head"]:
        r"""The rate c of the error $e^{-ct}$, one per head; the smallest one wins.

        $$c_h = \max_s \frac{(x_{1} W_Q^h + b_Q^h)\cdot(D_s W_K^h)}{\text{scale}}
          \;=\; x_\mathrm{cls}\cdot(u_1 + \lVert u_1\rVert^2 u_2) \text{ with identity Q and K.}$$

        Args:
            neuron: the arm.
            query: the row that attends; its $x_1$ must not depend on the strength.

        Returns:
            Logits per unit of strength. Negative: the sink repels this token (an anti-sink).

        Raises:
            TheoryError: if the model has a norm, which bounds the logits.
        """
        if self.norm != "none":
            raise TheoryError(
                f"the model has a {self.norm!r} norm, under which logits stop growing with the strength, so "
                "that its error has no exponential rate; use ttreg_interp.theory.noop_norm.rate_in_key_gain"
            )
        x1 = self.first_block(torch.ones(1, dtype=self.rest.dtype), neuron)[:, [query]]
        keys = self.attention.keys(self.drive(neuron))
        logits = self.attention.queries(x1)[0] @ keys.mT / self.attention.scale
        return logits.amax((-2, -1))

    def onset(self, neuron: Neuron = "intact", query: int = CLS) -> Float[Tensor, " head"]:
        r"""The strength at which the sinks hold half of the attention, one per head.

        $$t_{1/2} = \Big(\log\!\!\sum_{i \notin S} e^{\ell_i} - \ell_s(0)\Big) / c.$$

        [CLS]'s attention to itself is one of the terms: it delays the no-op and leaves the rate alone.
        Infinite where the rate is not positive.
        """
        sink = self._sink_rows(neuron)
        x1 = self.first_block(torch.full((1,), FAR, dtype=self.rest.dtype), neuron)
        logits = self.attention.logits(x1)[0, :, query]
        lead = logits[:, sink].logsumexp(-1) - logits[:, ~sink].logsumexp(-1)
        rate = self.rate(neuron, query)
        return torch.where(rate > 0, FAR - lead / rate, torch.inf)

    def leading_error(
        self, strength: Float[Tensor, " batch"], neuron: Neuron = "intact", query: int = CLS
    ) -> Float[Tensor, " batch"]:
        r"""The error to first order in the attention that misses the sinks, constant included.

        $$\Big\lVert J_f(x_1) \sum_h \sum_{i\notin S} e^{\ell_i^h - \ell_S^h}\, x_{1,i} W_V^h W_O^h \Big\rVert_2.$$
        """
        x1, sink = self.first_block(strength, neuron), self._sink_rows(neuron)
        read = normalise(x1, self.norm)
        logits = self.attention.logits(read)[:, :, query]
        missed = (logits - logits[..., sink].logsumexp(-1, keepdim=True)).exp()[..., ~sink]
        values = self.attention.values(read)[:, :, ~sink]
        update = (missed.unsqueeze(-2) @ values @ self.attention.w_o).sum((1, 2))
        return torch.func.jvp(self.read, (x1[:, query],), (update,))[1].norm(dim=-1)

    def saturated_error(
        self,
        strength: Float[Tensor, " batch"],
        neuron: Neuron = "intact",
        query: int = CLS,
        key: int = -1,
    ) -> Float[Tensor, " batch"]:
        r"""The error if every head gave all its weight to one key: what a broken assumption leaves.

        $$\Big\lVert f\big(x_1 + \sum_h x_{1,k} W_V^h W_O^h\big) - f(x_1) \Big\rVert_2,$$

        zero if that token is invisible to f. The last row, a sink, is the default key.
        """
        x1 = self.first_block(strength, neuron)
        values = self.attention.values(normalise(x1, self.norm))[:, :, [key]]
        update = (values @ self.attention.w_o).sum((1, 2))
        return (self.read(x1[:, query] + update) - self.read(x1[:, query])).norm(dim=-1)

    def _sink_rows(self, neuron: Neuron) -> Bool[Tensor, " token"]:
        """The sinks of an arm. In the gain form a register leaves nothing behind that grows."""
        if neuron != "register":
            return self.is_sink
        register, left = torch.ones(1, dtype=torch.bool), self.is_sink & (self.form == "token")
        return torch.cat([left[:REGISTER], register, left[REGISTER:]])


def move_neuron(
    a: Float[Tensor, "batch token neuron"], neuron: Neuron
) -> Float[Tensor, "batch token neuron"]:
    """Leave neuron 0 intact, zero it everywhere, or move its maximum over all tokens to the register.

    Source: arXiv 2506.08010, Algorithm 2.
    """
    if neuron == "intact":
        return a
    moved = torch.zeros_like(a[..., :1])
    if neuron == "register":
        moved[:, REGISTER] = a[..., :1].amax(dim=1)
    return torch.cat([moved, a[..., 1:]], dim=-1)


def check_strength(strength: Float[Tensor, " batch"]) -> None:
    """Refuse strengths that are not positive finite numbers."""
    bad = strength[~(torch.isfinite(strength) & (strength > 0))]
    if len(bad):
        raise TheoryError(
            f"the strength of the sink must be positive and finite, found {bad[0].item():g}; "
            "beta = 0 has no sink, and beta < 0 leaves the register neuron silent"
        )
