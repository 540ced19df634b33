"""TransformerLens' ActivationCache, told what is different in a vision transformer."""

from typing import Any

from torch import Tensor
from transformer_lens import ActivationCache

from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.hooked.text_layout import Layout


class ViTActivationCache(ActivationCache):
    """An ActivationCache with the layout of the run, and decompositions that start after `ln_pre`.

    In a model with a norm before its blocks, `hook_embed` is not what the residual stream starts
    from; `hook_full_embed` is. The decompositions take the latter and label it `embed`.
    """

    def __init__(
        self,
        cache_dict: dict[str, Tensor],
        model: Any,
        layout: Layout,
        has_batch_dim: bool = True,
    ):
        super().__init__(cache_dict, model, has_batch_dim=has_batch_dim)
        self.layout = layout

    def decompose_resid(self, *args: Any, **kwargs: Any) -> Any:
        """Components of the residual stream by layer; see `ActivationCache.decompose_resid`."""
        return ActivationCache.decompose_resid(self._from_full_embed(), *args, **kwargs)

    def get_full_resid_decomposition(self, *args: Any, **kwargs: Any) -> Any:
        """Every head, neuron, the embedding and the biases; see TransformerLens."""
        return ActivationCache.get_full_resid_decomposition(
            self._from_full_embed(), *args, **kwargs
        )

    def apply_ln_to_stack(self, residual_stack: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply a layer's cached norm to a stack; see `ActivationCache.apply_ln_to_stack`.

        Raises:
            UnsupportedModelError: the final norm of this model reads the pooled vector, so that
                it has no scale per token.
        """
        model: Any = self.model
        layer = args[0] if args else kwargs.get("layer")
        if layer in (None, -1, model.cfg.n_layers) and model.parts.norm_after_pool:
            raise UnsupportedModelError(
                f"{model.cfg.model_name} normalises after pooling: its final norm has one scale "
                "per image, not per token. Use apply_ln=False, or a layer before the last."
            )
        return super().apply_ln_to_stack(residual_stack, *args, **kwargs)

    def _from_full_embed(self) -> "ViTActivationCache":
        if "hook_full_embed" not in self.cache_dict:
            return self
        start = {"hook_embed": self.cache_dict["hook_full_embed"]}
        return ViTActivationCache(
            {**self.cache_dict, **start}, self.model, self.layout, self.has_batch_dim
        )
