"""The text tower of a CLIP-style model, as a pair of functions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


@dataclass(frozen=True)
class TextTower:
    """Texts to the embedding space of the images."""

    module: nn.Module
    """What owns the text parameters; it moves with them."""
    tokenize: Callable[[Sequence[str]], Int[Tensor, "text position"]]
    """Texts to padded token ids."""
    encode: Callable[[Int[Tensor, "text position"]], Float[Tensor, "text output"]]
    """Token ids to embeddings, not normalised."""

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "text output"]:
        """Embeddings of `texts`, not normalised, on the device of the text parameters."""
        device = next(self.module.parameters()).device
        return self.encode(self.tokenize(list(texts)).to(device))
