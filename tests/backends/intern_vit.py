"""A vision transformer that no source file knows, written as InternViT's remote code is, and its map."""

from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn import functional as F

from tests.interventions.models import D_MLP, D_MODEL, GRID, N_HEADS, N_LAYERS
from ttreg_interp.backends.shape import TowerShape
from ttreg_interp.backends.sites import BlockSites, SiteMap


class InternAttention(nn.Module):
    """Queries and keys are normed over all heads; spelled out, or fused."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.qkv, self.proj = nn.Linear(D_MODEL, 3 * D_MODEL), nn.Linear(D_MODEL, D_MODEL)
        self.q_norm, self.k_norm = nn.RMSNorm(D_MODEL, eps=1e-6), nn.RMSNorm(D_MODEL, eps=1e-6)
        self.attn_drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (
            part.unflatten(-1, (N_HEADS, -1)).transpose(1, 2)
            for part in (self.q_norm(q), self.k_norm(k), v)
        )
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            pattern = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
            x = self.attn_drop(pattern) @ v
        return self.proj(x.transpose(1, 2).flatten(2))


class InternMLP(nn.Module):
    """A plain MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(D_MODEL, D_MLP), nn.Linear(D_MLP, D_MODEL)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class InternVisionEncoderLayer(nn.Module):
    """A pre-norm block; LayerScale is a parameter of its own."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.attn, self.mlp = InternAttention(fused), InternMLP()
        self.norm1, self.norm2 = nn.RMSNorm(D_MODEL, eps=1e-6), nn.RMSNorm(D_MODEL, eps=1e-6)
        self.ls1, self.ls2 = nn.Parameter(torch.ones(D_MODEL)), nn.Parameter(torch.ones(D_MODEL))
        self.drop_path1, self.drop_path2 = nn.Identity(), nn.Identity()

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = hidden_states + self.drop_path1(
            self.attn(self.norm1(hidden_states)) * self.ls1
        )
        return hidden_states + self.drop_path2(self.mlp(self.norm2(hidden_states)) * self.ls2)


class InternVisionModel(nn.Module):
    """[CLS] and patches to tokens."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, D_MODEL))
        self.patch_embedding = nn.Conv2d(3, D_MODEL, 8, 8)
        self.position_embedding = nn.Parameter(torch.zeros(1, 1 + GRID**2, D_MODEL))
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            InternVisionEncoderLayer(fused) for _ in range(N_LAYERS)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.class_embedding.expand(len(patches), -1, -1), patches), dim=1)
        tokens = tokens + self.position_embedding
        for layer in self.encoder.layers:
            tokens = layer(tokens)
        return tokens


class Chat(nn.Module):
    """A larger model that holds one: the projected mean of its patches."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.vision_model, self.mlp1 = InternVisionModel(fused), nn.Linear(D_MODEL, 7)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.mlp1(self.vision_model(pixel_values)[:, 1:].mean(dim=1))


def chat_of(tower: Any, fused: bool) -> Chat:
    """The same weights in the code above."""
    chat = Chat(fused)
    vision, embeddings = chat.vision_model, tower.embeddings
    vision.class_embedding.data = embeddings.cls_token.data
    vision.position_embedding.data = embeddings.position_embeddings.data
    vision.patch_embedding.load_state_dict(embeddings.patch_embeddings.projection.state_dict())
    for mine, theirs in zip(vision.encoder.layers, tower.encoder.layer, strict=True):
        attn = theirs.attention
        state = {
            "ls1": theirs.lambda_1,
            "ls2": theirs.lambda_2,
            "norm1.weight": theirs.layernorm_before.weight,
            "norm2.weight": theirs.layernorm_after.weight,
            "attn.q_norm.weight": attn.q_norm.weight,
            "attn.k_norm.weight": attn.k_norm.weight,
            "attn.proj.weight": attn.projection_layer.weight,
            "attn.proj.bias": attn.projection_layer.bias,
        }
        for part in ("weight", "bias"):
            three = [getattr(p, part) for p in (attn.q_proj, attn.k_proj, attn.v_proj)]
            state[f"attn.qkv.{part}"] = torch.cat(three)
            state |= {
                f"mlp.{fc}.{part}": getattr(theirs.mlp.get_submodule(fc), part)
                for fc in ("fc1", "fc2")
            }
        mine.load_state_dict(state)
    return chat.eval()


CONFIG = hf.InternVLVisionConfig(
    hidden_size=D_MODEL,
    num_hidden_layers=N_LAYERS,
    num_attention_heads=N_HEADS,
    intermediate_size=D_MLP,
    image_size=GRID * 8,
    patch_size=8,
    norm_type="rms_norm",
    use_qk_norm=True,
    attention_bias=True,
)
_BLOCK = {
    "ln1": "norm1",
    "attn_out": "attn.proj",
    "ln2": "norm2",
    "mlp_out": "mlp.fc2",
    "attn_contribution": "drop_path1.output",
    "resid_mid": "source.hidden_states_0.output",
    "mlp_contribution": "drop_path2.output",
    "attn_gamma": "ls1",
    "mlp_gamma": "ls2",
}


def sites_of_chat(fused: bool) -> SiteMap:
    """The map that a person writes for it."""
    if fused:
        operation = "attn.source.F_scaled_dot_product_attention_0"
        inside = BlockSites(**_BLOCK, attention=operation, call="sdpa")
    else:
        inside = BlockSites(**_BLOCK, pattern="attn.attn_drop.output", z="attn.proj.input")
    return SiteMap("encoder.layers.{layer}", inside, tower="vision_model")


def shape_of(chat: Chat) -> TowerShape:
    """Its sizes, and the mean patch as its output."""
    return TowerShape(
        n_layers=N_LAYERS,
        n_heads=N_HEADS,
        image_size=(GRID * 8, GRID * 8),
        patch_size=(8, 8),
        reference=lambda pixels: chat.vision_model(pixels)[:, 1:].mean(dim=1),
    )
