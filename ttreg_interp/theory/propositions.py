"""Equalities of the closed-form model that hold at any strength, not only in the limit.

Each function returns the two sides of one proposition of `docs/concepts/noop.md`, computed in
different ways. They are about one attention layer: what reaches it is taken as given.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.theory.noop import REGISTER, NoOpModel
from ttreg_interp.theory.parts import KeyValue, TheoryError, normalise


@dataclass(frozen=True, eq=False)
class Sides:
    """The outputs of every token under two descriptions of one computation."""

    left: Float[Tensor, "batch token output"]
    """One description."""
    right: Float[Tensor, "batch token output"]
    """The other."""

    @property
    def gap(self) -> float:
        """Largest difference, relative to the largest output."""
        return float((self.left - self.right).abs().max() / self.right.abs().max())


def outlier_is_bias(model: NoOpModel, strength: Float[Tensor, " batch"]) -> Sides:
    r"""For every other token, an outlier patch is an attention bias with its key and value.

    $$\mathrm{softmax}(Q K^\top) V = \mathrm{softmax}(Q [K_{\neq s}^\top\; k_s])\,[V_{\neq s};\, v_s].$$

    Args:
        model: any; its last row is the outlier.
        strength: of the sink.

    Returns:
        Left the outlier, right the bias; all tokens but the outlier.

    Source: arXiv 2506.08010, Corollary 1, there to leading order with k' = v' = alpha_s v2.

    Example:
        >>> from ttreg_interp.theory.assumptions import draw
        >>> outlier_is_bias(draw(), torch.tensor([3.0])).gap < 1e-12
        True
    """
    x1 = model.first_block(strength)
    without = model.finish(x1[:, :-1], key_value(model, x1[:, -1]))
    return Sides(model.finish(x1).output[:, :-1], without.output)


def register_is_bias(
    source: NoOpModel, target: NoOpModel, strength: Float[Tensor, " batch"]
) -> Sides:
    """k', v' of one image's register act on another image as that register would, were it frozen.

    Args:
        source: the model on the image that gives k' and v'.
        target: the same model on the image that receives them, its neuron zeroed.
        strength: of the sink.

    Returns:
        Left the bias; right a register token held at its value in the source image. With
        `target = source` the right side is the live register run.

    Source: arXiv 2506.08010, appendix A.2.

    Example:
        >>> from ttreg_interp.theory.assumptions import draw
        >>> register_is_bias(draw(), draw(), torch.tensor([3.0])).gap < 1e-12
        True
    """
    register = source.first_block(strength, "register")[:, [REGISTER]]
    x1 = target.first_block(strength, "zeroed")
    frozen = torch.cat([x1[:, :REGISTER], register, x1[:, REGISTER:]], dim=1)
    biased = target.finish(x1, key_value(source, register[:, 0]))
    return Sides(biased.output, without_register(target.finish(frozen).output))


def copies_are_log_weight(
    model: NoOpModel, strength: Float[Tensor, " batch"], copies: int
) -> Sides:
    r"""tau copies of a token are one token with log tau added to its logit.

    $$\frac{\tau e^{\ell_s} v_s}{\tau e^{\ell_s} + \sum_{i\ne s} e^{\ell_i}}
      = \frac{e^{\ell_s + \log\tau} v_s}{e^{\ell_s + \log\tau} + \sum_{i\ne s} e^{\ell_i}}.$$

    Args:
        model: any; its last row is the token to copy.
        strength: of the sink.
        copies: tau, at least 1.

    Returns:
        Left the copies, right the weight; all tokens but the copied one.

    Raises:
        TheoryError: if there is less than one copy.

    Example:
        >>> from ttreg_interp.theory.assumptions import draw
        >>> copies_are_log_weight(draw(), torch.tensor([3.0]), copies=4).gap < 1e-12
        True
    """
    if copies < 1:
        raise TheoryError(
            f"found copies={copies}; at least one copy is needed for log tau to exist"
        )
    x1 = model.first_block(strength)
    repeated = torch.cat([x1, x1[:, [-1] * (copies - 1)]], dim=1)
    weighted = model.finish(x1[:, :-1], key_value(model, x1[:, -1], math.log(copies)))
    return Sides(model.finish(repeated).output[:, : x1.shape[1] - 1], weighted.output)


def vanishing_bias(model: NoOpModel, strength: Float[Tensor, " batch"], log_weight: float) -> Sides:
    r"""An attention bias whose logit goes to minus infinity is no bias.

    $$\lvert \text{left} - \text{right} \rvert = O(e^{\log\tau}) \to 0 \text{ as } \log\tau \to -\infty.$$

    Args:
        model: any; k' and v' are those of its last row.
        strength: of the sink.
        log_weight: added to the logit of k'.

    Returns:
        Left the bias, right plain attention.

    Example:
        >>> from ttreg_interp.theory.assumptions import draw
        >>> vanishing_bias(draw(), torch.tensor([1.0]), log_weight=-50.0).gap < 1e-12
        True
    """
    x1 = model.first_block(strength)
    biased = model.finish(x1, key_value(model, x1[:, -1], log_weight))
    return Sides(biased.output, model.finish(x1).output)


def null_bias_is_softmax_one(model: NoOpModel, strength: Float[Tensor, " batch"]) -> Sides:
    r"""k' = 0, v' = 0 is not plain attention but the softmax that may attend to nothing.

    $$p_i = \frac{e^{\ell_i}}{1 + \sum_j e^{\ell_j}}.$$

    Args:
        model: any, without query bias towards k' (a zero key has logit zero).
        strength: of the sink.

    Returns:
        Left the null bias, right the formula.

    Example:
        >>> from ttreg_interp.theory.assumptions import draw
        >>> null_bias_is_softmax_one(draw(), torch.tensor([0.5])).gap < 1e-12
        True
    """
    x1 = model.first_block(strength)
    read = normalise(x1, model.norm)
    null = torch.zeros_like(model.attention.b_q)
    logits = model.attention.logits(read)
    largest = logits.amax(-1, keepdim=True).clamp(min=0)
    weights = (logits - largest).exp()
    pattern = weights / ((-largest).exp() + weights.sum(-1, keepdim=True))
    update = (pattern @ model.attention.values(read) @ model.attention.w_o).sum(1)
    return Sides(model.finish(x1, KeyValue(null, null)).output, model.read(x1 + update))


def key_value(
    model: NoOpModel, x1: Float[Tensor, "batch d_model"], log_weight: float = 0.0
) -> KeyValue:
    """k' and v' of one row of the residual stream, after the norm if there is one.

    Example:
        >>> from ttreg_interp.theory.assumptions import draw
        >>> key_value(draw(), torch.zeros(2, 16, dtype=torch.float64)).key.shape
        torch.Size([2, 1, 16])
    """
    return model.attention.key_value(normalise(x1, model.norm), log_weight)


def without_register(
    rows: Float[Tensor, "batch token output"],
) -> Float[Tensor, "batch token_ output"]:
    """The rows of every token but the register."""
    return torch.cat([rows[:, :REGISTER], rows[:, REGISTER + 1 :]], dim=1)
