"""A pre-norm transformer block under TransformerLens' hook points, over the source's own modules.

Every hook point is causal: what a hook returns is what the forward pass goes on with. Names and
shapes are TransformerLens'. `hook_mask` is ours: additive attention logits, which let an
intervention hide or weigh keys while attention stays fused.
"""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformer_lens.hook_points import HookPoint

from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.hooked.parts import (
    AttentionParts,
    BlockParts,
    MLPParts,
    OutputLinear,
    Positions,
)


def guard_hooks(module: nn.Module) -> None:
    """Look at every hook point of a module that is being compiled, so that hooks that come or go later
    are noticed: `torch.compile` has no guards on hooks of its own
    (`torch._dynamo.config.skip_nnmodule_hook_guards`), also not in blocks that are compiled one by one.
    """
    if torch.compiler.is_dynamo_compiling():
        for point in module.modules():
            if isinstance(point, HookPoint):
                point.has_hooks()


class HookedNorm(nn.Module):
    """LayerNorm or RMSNorm; its two hook points take the fused kernel apart only when hooked.

    normalized = (x - mean) / scale,  scale = sqrt(var + eps),  output = normalized * w + b
    (RMSNorm: mean = 0, var = mean of squares).
    """

    norm: Any

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.__dict__["norm"] = norm  # beside the module tree: the source already owns it
        self.centred = isinstance(norm, nn.LayerNorm)
        if not self.centred and not _is_rms_norm(norm):
            raise UnsupportedModelError(
                f"The norm {type(norm).__name__} is neither a LayerNorm nor an RMSNorm; its scale "
                "has no meaning here."
            )
        self.hook_scale = HookPoint()  # [batch, token, 1]
        self.hook_normalized = HookPoint()  # [batch, token, d_model]

    @property
    def w(self) -> Tensor | None:
        """Gain, [d_model]."""
        return _gain(self.norm)

    @property
    def b(self) -> Tensor | None:
        """Offset, [d_model]."""
        return self.norm.bias if self.centred else None

    def forward(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        """The norm of `x`."""
        if not (self.hook_scale.has_hooks() or self.hook_normalized.has_hooks()):
            return self.norm(x)
        exact = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        if self.centred:
            exact = exact - exact.mean(dim=-1, keepdim=True)
        # few passes over the rows: each costs as much as the fused kernel
        square = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square()
        mean_square = square / exact.shape[-1]
        scale = self.hook_scale((mean_square + _eps(self.norm, exact.dtype)).sqrt())
        normalized = self.hook_normalized((exact / scale).to(x.dtype))
        if self.w is None:
            return normalized
        return normalized * self.w if self.b is None else torch.addcmul(self.b, normalized, self.w)


_GAINS_FROM_ONE = ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm")
"""Norms whose stored weight is the gain minus one."""


def _gain(norm: Any) -> Tensor | None:
    return norm.weight + 1 if type(norm).__name__ in _GAINS_FROM_ONE else norm.weight


def _is_rms_norm(norm: nn.Module) -> bool:
    return isinstance(norm, nn.RMSNorm) or "rmsnorm" in type(norm).__name__.lower()


def _eps(norm: Any, dtype: torch.dtype) -> float:
    """Libraries call it `eps` or `variance_epsilon`; torch's RMSNorm may leave it None."""
    eps = getattr(norm, "eps", getattr(norm, "variance_epsilon", None))
    return torch.finfo(dtype).eps if eps is None else eps


def capped(scores: Float[Tensor, "..."], softcap: float | None) -> Float[Tensor, "..."]:
    """c tanh(score / c); the scores themselves where there is no cap."""
    return scores if softcap is None else softcap * (scores / softcap).tanh()


class HookedAttention(nn.Module):
    """Multi-head attention; fused, unless somebody asks for this layer's scores or pattern, or they are
    capped."""

    def __init__(self, parts: AttentionParts):
        super().__init__()
        self.parts = parts
        self.hook_q = HookPoint()  # [batch, token, head, d_head]
        self.hook_k = HookPoint()  # [batch, token, head, d_head]
        self.hook_v = HookPoint()  # [batch, token, head, d_head]
        if parts.rotate is not None:
            self.hook_rot_q = HookPoint()  # [batch, token, head, d_head], turned by position
            self.hook_rot_k = HookPoint()  # [batch, token, head, d_head]
        self.hook_mask = HookPoint()  # [batch | 1, head | 1, query, key], added to the scores
        self.hook_attn_scores = HookPoint()  # [batch, head, query, key], before softmax
        self.hook_pattern = HookPoint()  # [batch, head, query, key]
        self.hook_z = HookPoint()  # [batch, token, head, d_head], as W_O reads it
        self.hook_result = HookPoint()  # [batch, token, head, d_model]

    def forward(
        self, x: Float[Tensor, "batch token d_model"], positions: Positions = None
    ) -> Float[Tensor, "batch token d_model"]:
        """What the layer adds to the residual stream, LayerScale included, or its norm reads."""
        guard_hooks(self)
        q, k, v = self.parts.qkv(x)
        # A hook may lengthen k and v at the front (an attention bias is one key more): rotation
        # and masks count from the end.
        q, k, v = self.hook_q(q), self.hook_k(k), self.hook_v(v)
        if self.parts.rotate is not None:
            q, k = self.parts.rotate(q.transpose(1, 2), k.transpose(1, 2), positions)
            q, k = self.hook_rot_q(q.transpose(1, 2)), self.hook_rot_k(k.transpose(1, 2))
        n_given = q.shape[1] if self.parts.window is None else positions.n_given
        z = self._mix(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), n_given)
        return self._output(self.hook_z(self._gated(z.transpose(1, 2), x)))

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, n_given: int) -> Tensor:
        """softmax(q k^T scale + mask) v; all [batch, head, token, d_head]."""
        spelled_out = self.parts.softcap is not None or (
            self.hook_attn_scores.has_hooks() or self.hook_pattern.has_hooks()
        )
        masked = self.hook_mask.has_hooks() or n_given > (self.parts.window or n_given)
        if not (spelled_out or masked) and q.shape[2] == k.shape[2]:
            causal, scale = self.parts.causal, self.parts.scale
            return scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)
        mask = self._mask(q, k, n_given)
        if not spelled_out:
            if mask is not None:  # the fused kernels want all rows spelled out
                mask = mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
            return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.parts.scale)
        scores = capped(q @ k.transpose(-2, -1) * self.parts.scale, self.parts.softcap)
        if mask is not None:
            scores = scores + mask
        return self.hook_pattern(self.hook_attn_scores(scores).softmax(dim=-1)) @ v

    def _mask(self, q: Tensor, k: Tensor, n_given: int) -> Tensor | None:
        """What is added to the scores, [batch | 1, head | 1, query, key]; None for nothing."""
        if not (self.parts.causal or self.hook_mask.has_hooks()):
            return None
        mask = q.new_zeros(1, 1, q.shape[2], k.shape[2])
        if self.parts.causal:  # keys in front of the tokens (an attention bias) are seen by all
            in_front = k.shape[2] - q.shape[2]
            everywhere = torch.ones_like(mask, dtype=torch.bool)
            unseen = everywhere.triu(1 + in_front)
            if self.parts.window is not None:
                too_early = everywhere.tril(in_front - self.parts.window)
                too_early[..., : k.shape[2] - n_given] = False  # test-time registers, too
                unseen = unseen | too_early
            mask = mask.masked_fill(unseen, float("-inf"))
        return self.hook_mask(mask)

    def _gated(self, z: Tensor, x: Tensor) -> Tensor:
        """`z` after an inner norm and a gate, where the family has them."""
        if self.parts.inner_norm is None and self.parts.gate is None:
            return z
        flat = z.flatten(2)
        if self.parts.inner_norm is not None:
            flat = self.parts.inner_norm(flat)
        if self.parts.gate is not None:
            flat = flat * self.parts.gate(x)
        return flat.unflatten(2, z.shape[2:])

    def _output(self, z: Float[Tensor, "batch token head d_head"]) -> Tensor:
        gamma = None if self.parts.gamma is None else self.parts.gamma()
        if self.hook_result.has_hooks():
            result = torch.einsum("bthd,hdm->bthm", z, self._write(gamma))
            return self.hook_result(result).sum(dim=2) + _out_bias(self.parts.out, gamma)
        attn_out = self.parts.out(z.flatten(2))
        return attn_out if gamma is None else attn_out * gamma

    def _write(self, factor: Tensor | None) -> Float[Tensor, "head d_head d_model"]:
        return rearrange(
            _scaled_rows(self.parts.out.weight, factor),
            "d_model (head d_head) -> head d_head d_model",
            head=self.parts.n_heads,
        )

    def _per_head(self, weight: Tensor) -> Tensor:
        return rearrange(
            weight, "(head d_head) d_model -> head d_model d_head", head=self.parts.n_heads
        )

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        """Query weights."""
        return self._per_head(self.parts.qkv_weights()[0])

    @property
    def W_K(self) -> Float[Tensor, "head d_model d_head"]:
        """Key weights."""
        return self._per_head(self.parts.qkv_weights()[1])

    @property
    def W_V(self) -> Float[Tensor, "head d_model d_head"]:
        """Value weights."""
        return self._per_head(self.parts.qkv_weights()[2])

    def _bias(self, index: int) -> Tensor:
        bias = self.parts.qkv_biases()[index]
        if bias is None:
            bias = self.parts.out.weight.new_zeros(self.parts.n_heads * self.parts.d_head)
        return rearrange(bias, "(head d_head) -> head d_head", head=self.parts.n_heads)

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        """Query biases; zeros where the source has none."""
        return self._bias(0)

    @property
    def b_K(self) -> Float[Tensor, "head d_head"]:
        """Key biases; zeros where the source has none."""
        return self._bias(1)

    @property
    def b_V(self) -> Float[Tensor, "head d_head"]:
        """Value biases; zeros where the source has none."""
        return self._bias(2)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """Output weights with LayerScale folded in: sum over heads of z W_O, plus b_O, is attn_out.

        Where a norm stands behind the layer, its gain is folded in, and attn_out is that divided by
        `ln1_post.hook_scale`.
        """
        return self._write(_factor(self.parts))

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        """Output bias, with what is folded into W_O."""
        return _out_bias(self.parts.out, _factor(self.parts))


class HookedMLP(nn.Module):
    """An MLP, plain or gated; `hook_post` holds the neurons, as the last linear reads them."""

    def __init__(self, parts: MLPParts):
        super().__init__()
        self.parts = parts
        self.hook_pre = HookPoint()  # [batch, token, neuron]
        if parts.gate_weights is not None:
            self.hook_pre_linear = HookPoint()  # [batch, token, neuron]
        self.hook_post = HookPoint()  # [batch, token, neuron]

    def forward(
        self, x: Float[Tensor, "batch token d_model"]
    ) -> Float[Tensor, "batch token d_model"]:
        """What the MLP adds to the residual stream, LayerScale included, or its norm reads."""
        guard_hooks(self)
        pre, linear = self.parts.project(x)
        post = self.parts.act(self.hook_pre(pre))
        if linear is not None:
            post = post * self.hook_pre_linear(linear)
        if self.parts.inner_norm is not None:
            post = self.parts.inner_norm(post)
        mlp_out = self.parts.out(self.hook_post(post))
        return mlp_out if self.parts.gamma is None else mlp_out * self.parts.gamma()

    def neurons(
        self, x: Float[Tensor, "batch token d_model"]
    ) -> Float[Tensor, "batch token neuron"]:
        """What `hook_post` would hold for these inputs; runs no hook.

        Recomputing a few rows is cheaper than holding the neurons of all tokens.
        """
        pre, linear = self.parts.project(x)
        post = self.parts.act(pre)
        if linear is not None:
            post = post * linear
        return post if self.parts.inner_norm is None else self.parts.inner_norm(post)

    @property
    def W_in(self) -> Float[Tensor, "d_model neuron"]:
        """Input weights; of a gated MLP, those of the branch without nonlinearity."""
        return self.parts.in_weights()[0].T

    @property
    def b_in(self) -> Float[Tensor, " neuron"]:
        """Input biases; zeros where the source has none."""
        return _bias_or_zeros(self.parts.in_weights())

    @property
    def W_gate(self) -> Float[Tensor, "d_model neuron"] | None:
        """Weights of the branch under the nonlinearity of a gated MLP, else None."""
        return None if self.parts.gate_weights is None else self.parts.gate_weights()[0].T

    @property
    def b_gate(self) -> Float[Tensor, " neuron"] | None:
        """Biases of that branch, else None."""
        return (
            None if self.parts.gate_weights is None else _bias_or_zeros(self.parts.gate_weights())
        )

    @property
    def W_out(self) -> Float[Tensor, "neuron d_model"]:
        """Output weights with LayerScale folded in: post W_out + b_out is mlp_out.

        Where a norm stands behind the MLP, its gain is folded in, and mlp_out is that divided by
        `ln2_post.hook_scale`.
        """
        return _scaled_rows(self.parts.out.weight, _factor(self.parts)).T

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        """Output bias, with what is folded into W_out."""
        return _out_bias(self.parts.out, _factor(self.parts))


def _factor(parts: AttentionParts | MLPParts) -> Tensor | None:
    """What scales a layer's output dimension by dimension: LayerScale, or the gain of its norm."""
    if parts.post_norm is not None:
        return _gain(parts.post_norm)
    return None if parts.gamma is None else parts.gamma()


def _scaled_rows(weight: Tensor, factor: Tensor | None) -> Tensor:
    return weight if factor is None else weight * factor[:, None]


def _out_bias(out: OutputLinear, factor: Tensor | None) -> Tensor:
    if out.bias is None:
        return out.weight.new_zeros(out.weight.shape[0])
    return out.bias if factor is None else out.bias * factor


def _bias_or_zeros(linear: tuple[Tensor, Tensor | None]) -> Tensor:
    weight, bias = linear
    return weight.new_zeros(weight.shape[0]) if bias is None else bias


class HookedBlock(nn.Module):
    """resid_mid = resid_pre + attn(ln1(resid_pre));  resid_post = resid_mid + mlp(ln2(resid_mid)).

    In a parallel block the MLP reads ln2(resid_pre). Where layers have a norm behind them,
    `ln1_post` and `ln2_post` read what they return.
    """

    def __init__(self, parts: BlockParts):
        super().__init__()
        self.parallel = parts.parallel
        self.hook_resid_pre = HookPoint()
        self.ln1 = HookedNorm(parts.ln1)
        self.attn = HookedAttention(parts.attn)
        self.ln1_post = _norm_behind(parts.attn)
        self.hook_attn_out = HookPoint()
        self.hook_resid_mid = HookPoint()
        self.ln2 = HookedNorm(parts.ln2)
        self.mlp = HookedMLP(parts.mlp)
        self.ln2_post = _norm_behind(parts.mlp)
        self.hook_mlp_out = HookPoint()
        self.hook_resid_post = HookPoint()

    def forward(
        self, resid_pre: Float[Tensor, "batch token d_model"], positions: Positions = None
    ) -> Float[Tensor, "batch kept d_model"]:
        """The residual stream after this block; a hook may have added or deleted rows."""
        guard_hooks(self)
        resid_pre = self.hook_resid_pre(resid_pre)
        attn_out = self.ln1_post(self.attn(self.ln1(resid_pre), positions))
        attn_out = self.hook_attn_out(attn_out)
        resid_mid = self.hook_resid_mid(resid_pre + attn_out)
        read = resid_pre if self.parallel else resid_mid
        mlp_out = self.hook_mlp_out(self.ln2_post(self.mlp(self.ln2(read))))
        return self.hook_resid_post(resid_mid + mlp_out)


def _norm_behind(parts: AttentionParts | MLPParts) -> nn.Module:
    return nn.Identity() if parts.post_norm is None else HookedNorm(parts.post_norm)
