"""DINOv2's class, its attributes and its arithmetic, written anew: what its source file relies on."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class PatchEmbed(nn.Module):
    def __init__(self, img_size, patch_size, width):
        super().__init__()
        self.img_size, self.patch_size = img_size, (patch_size, patch_size)
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, x):
        return self.proj(x).flatten(2).mT


class Attention(nn.Module):
    """As released without xFormers: the scale goes to the queries, and nothing is fused."""

    def __init__(self, width, heads):
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attn_drop = nn.Dropout(0.1)

    def heads(self, x):
        return self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def mix(self, q, k, v):
        return self.attn_drop((q * q.shape[-1] ** -0.5 @ k.mT).softmax(dim=-1)) @ v

    def forward(self, x):
        return self.proj(self.mix(*self.heads(x)).transpose(1, 2).flatten(2))


class MemEffAttention(Attention):
    """As with a fused kernel."""

    def mix(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.act, self.fc2 = (
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class SwiGLUFFN(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 6 * width), nn.Linear(3 * width, width)

    def forward(self, x):
        gate, linear = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * linear)


class LayerScale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width, heads, fused, swiglu, layer_scale):
        super().__init__()
        scale = (lambda: LayerScale(width)) if layer_scale else nn.Identity
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = (MemEffAttention if fused else Attention)(width, heads)
        self.mlp = (SwiGLUFFN if swiglu else Mlp)(width)
        self.ls1, self.ls2 = scale(), scale()

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class NestedTensorBlock(Block):
    pass


class BlockChunk(nn.ModuleList):
    def forward(self, x):
        for block in self:
            x = block(x)
        return x


class DinoVisionTransformer(nn.Module):
    def __init__(
        self,
        img_size=56,
        patch_size=14,
        width=32,
        depth=4,
        heads=2,
        registers=0,
        chunks=0,
        classes=0,
        *,
        fused=True,
        swiglu=False,
        layer_scale=True,
    ):
        super().__init__()
        size = (img_size, img_size) if isinstance(img_size, int) else img_size
        n_patches = (size[0] // patch_size) * (size[1] // patch_size)
        self.patch_size = patch_size
        self.patch_embed = PatchEmbed(size, patch_size, width)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + n_patches, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.num_register_tokens = registers
        self.register_tokens = nn.Parameter(torch.randn(1, registers, width)) if registers else None
        blocks = [NestedTensorBlock(width, heads, fused, swiglu, layer_scale) for _ in range(depth)]
        if chunks:
            # Block 3 has index 3 in its chunk: Identities stand where earlier chunks have blocks.
            step = depth // chunks
            blocks = [
                BlockChunk([nn.Identity()] * start + blocks[start : start + step])
                for start in range(0, depth, step)
            ]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes) if classes else nn.Identity()

    def position(self, height, width):
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        rows, columns = height // self.patch_size, width // self.patch_size
        if rows * columns == side * side and height == width:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        # The offset of a tenth of a patch is DINOv2's own.
        factor = ((rows + 0.1) / side, (columns + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=factor, mode="bicubic")
        return torch.cat((self.pos_embed[:, :1], grid.flatten(2).mT), dim=1)

    def prepare_tokens_with_masks(self, x, masks=None):
        patches = self.patch_embed(x)
        tokens = torch.cat((self.cls_token.expand(len(x), -1, -1), patches), dim=1)
        tokens = tokens + self.position(*x.shape[-2:])
        if self.register_tokens is None:
            return tokens
        registers = self.register_tokens.expand(len(x), -1, -1)
        return torch.cat((tokens[:, :1], registers, tokens[:, 1:]), dim=1)

    def forward_features(self, x):
        tokens = self.prepare_tokens_with_masks(x)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def forward(self, x):
        return self.head(self.forward_features(x)[:, 0])
