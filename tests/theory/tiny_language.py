"""A causal language model of random weights that answers to the hook names of the image models."""

from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from ttreg_interp.hooked.blocks import HookedBlock
from ttreg_interp.hooked.config import HookedViTConfig
from ttreg_interp.hooked.intervened import intervened

LAYERS, D_MODEL, HEADS, D_MLP, VOCABULARY = 3, 24, 2, 48, 17


class TinyLanguageModel(HookedRootModule):
    """Embedding, pre-norm blocks under a causal mask, and a logit for every next token."""

    def __init__(self) -> None:
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer

        torch.manual_seed(0)
        tower = VisionTransformer(
            img_size=32, patch_size=8, embed_dim=D_MODEL, depth=LAYERS, num_heads=HEADS,
            mlp_ratio=D_MLP / D_MODEL, num_classes=VOCABULARY,
        ).eval()  # fmt: skip
        for parameter in tower.blocks.parameters():
            nn.init.normal_(parameter, std=0.4)
        from ttreg_interp.hooked.sources import timm

        parts = timm.parts(tower)
        self.hook_embed = HookPoint()
        self.blocks = nn.ModuleList(HookedBlock(block) for block in parts.blocks)
        for block in self.blocks:
            block.attn.hook_mask.add_hook(_causal, is_permanent=True)
        self.setup()
        self.embed = nn.Embedding(VOCABULARY, D_MODEL)
        self.source = tower
        self._interventions: list[Any] = []

    @property
    def cfg(self) -> HookedViTConfig:
        return HookedViTConfig(
            "tiny language model", LAYERS, D_MODEL, HEADS, D_MODEL // HEADS, D_MLP, 8, VOCABULARY,
            False, "LN", torch.device("cpu"), torch.float32,
        )  # fmt: skip

    def forward(self, ids: Tensor, stop_at_layer: int | None = None) -> Tensor:
        x = self.hook_embed(self.embed(ids))
        for block in self.blocks[:stop_at_layer]:
            x = block(x)
        return x if stop_at_layer is not None else self.source.head(self.source.norm(x))

    def intervened(self, *interventions: Any) -> Any:
        return intervened(self, self._interventions, interventions)


def _causal(mask: Tensor, hook: Any) -> Tensor:
    """Later tokens are hidden; a key in front of the tokens is seen by all."""
    queries, keys = mask.shape[-2:]
    later = torch.ones(queries, keys, dtype=torch.bool).triu(1 + keys - queries)
    return mask.masked_fill(later, float("-inf"))
