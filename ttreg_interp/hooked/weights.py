"""Weight stacks and the other things that TransformerLens' tools ask of a model."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import UnsupportedModelError


class WeightStacks:
    """Weights of all layers by TransformerLens' names, LayerScale folded into what writes.

    Each property builds a new tensor on every read.
    """

    blocks: Any
    parts: Any
    cfg: Any

    def _stack(self, path: str) -> Tensor:
        layer, name = path.split(".")
        return torch.stack([getattr(getattr(block, layer), name) for block in self.blocks])

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Query weights."""
        return self._stack("attn.W_Q")

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Key weights."""
        return self._stack("attn.W_K")

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """Value weights."""
        return self._stack("attn.W_V")

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """Output weights of attention."""
        return self._stack("attn.W_O")

    @property
    def W_in(self) -> Float[Tensor, "layer d_model neuron"]:
        """Input weights of the MLPs."""
        return self._stack("mlp.W_in")

    @property
    def W_gate(self) -> Float[Tensor, "layer d_model neuron"] | None:
        """Gate weights of gated MLPs, else None."""
        return self._stack("mlp.W_gate") if self.cfg.gated_mlp else None

    @property
    def W_out(self) -> Float[Tensor, "layer neuron d_model"]:
        """Output weights of the MLPs."""
        return self._stack("mlp.W_out")

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        """Query biases."""
        return self._stack("attn.b_Q")

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        """Key biases."""
        return self._stack("attn.b_K")

    @property
    def b_V(self) -> Float[Tensor, "layer head d_head"]:
        """Value biases."""
        return self._stack("attn.b_V")

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        """Output biases of attention."""
        return self._stack("attn.b_O")

    @property
    def b_in(self) -> Float[Tensor, "layer neuron"]:
        """Input biases of the MLPs."""
        return self._stack("mlp.b_in")

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        """Output biases of the MLPs."""
        return self._stack("mlp.b_out")

    @property
    def W_U(self) -> Float[Tensor, "d_model output"]:
        """Weights of the head.

        Raises:
            UnsupportedModelError: the head is not linear.
        """
        return self._unembed()[0].T

    @property
    def b_U(self) -> Float[Tensor, " output"]:
        """Bias of the head; zeros where it has none.

        Raises:
            UnsupportedModelError: the head is not linear.
        """
        weight, bias = self._unembed()
        return weight.new_zeros(weight.shape[0]) if bias is None else bias

    def _unembed(self) -> tuple[Tensor, Tensor | None]:
        if self.parts.unembed is None:
            raise UnsupportedModelError(
                f"{self.cfg.model_name} ({self.parts.family}) has no linear head, so no W_U."
            )
        return self.parts.unembed()

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Sum of the output biases that the residual stream holds before `layer`.

        Args:
            layer: biases of all blocks strictly before this one.
            mlp_input: also the attention bias of `layer` itself.
            include_mlp_biases: whether those of the MLPs count.
        """
        total = torch.zeros(self.cfg.d_model, device=self.cfg.device, dtype=self.cfg.dtype)
        for block in self.blocks[:layer]:
            total = total + block.attn.b_O
            if include_mlp_biases:
                total = total + block.mlp.b_out
        return total + self.blocks[layer].attn.b_O if mlp_input else total

    def tokens_to_residual_directions(self, tokens: int | Tensor) -> Tensor:
        """Directions of the head for class (or embedding) indices, [..., d_model].

        Raises:
            UnsupportedModelError: the head is not linear.
        """
        return self.W_U.T[torch.as_tensor(tokens, device=self.cfg.device)]

    def to_single_token(self, string: str) -> int:
        """Refused: a vision model has no vocabulary.

        Raises:
            UnsupportedModelError: always.
        """
        raise UnsupportedModelError(
            f"{self.cfg.model_name} has no tokenizer: pass the class index instead of {string!r}."
        )
