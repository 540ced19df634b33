# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Add your own model
#
# `HookedViT` runs one forward pass for every vision transformer, over the model's own modules. What it
# has to be told is where yours keeps them. Here is a small ViT of nobody's library, and all that it
# takes: two functions.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("ttreg_interp") is None:  # on Colab, say
    command = [sys.executable, "-m", "pip", "install", "--quiet", "ttreg-interp[demo]"]
    subprocess.run(command, check=True)

# %%
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

import ttreg_interp as tt
from ttreg_interp.hooked.parts import AttentionParts, BlockParts, MLPParts, ViTParts
from ttreg_interp.hooked.sources import common

# %% [markdown]
# ## A model
#
# Pre-norm blocks, attention then MLP. That is what fits.


# %%
class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv, self.out = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.up, self.down = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)

    def forward(self, x):
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.n_heads, -1)).unbind(2)
        heads = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)))
        x = x + self.out(heads.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


class MyViT(nn.Module):
    """Patches, [CLS], blocks, a norm, a linear head."""

    def __init__(self, d_model=48, depth=4, n_heads=3, size=64, patch=8, n_classes=5):
        super().__init__()
        self.size, self.patch = size, patch
        self.embed = nn.Conv2d(3, d_model, patch, patch)
        self.cls = nn.Parameter(torch.randn(1, 1, d_model))
        self.positions = nn.Parameter(torch.randn(1, 1 + (size // patch) ** 2, d_model))
        self.blocks = nn.ModuleList(Block(d_model, n_heads) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(d_model), nn.Linear(d_model, n_classes)

    def tokens(self, pixels):
        patches = self.embed(pixels).flatten(2).transpose(1, 2)
        return torch.cat((self.cls.expand(len(patches), -1, -1), patches), dim=1) + self.positions

    def forward(self, pixels):
        x = self.tokens(pixels)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


torch.manual_seed(0)
mine = MyViT().eval()


# %% [markdown]
# ## Where it keeps its parts
#
# Point, don't copy: give the model's own modules, and functions that read parameters when called.


# %%
def block_parts(block: Block) -> BlockParts:
    attention = AttentionParts(
        n_heads=block.n_heads,
        d_head=block.out.in_features // block.n_heads,
        qkv=common.fused_qkv(block.qkv, block.n_heads),
        qkv_weights=lambda: common.three(block.qkv.weight),
        qkv_biases=lambda: common.three(block.qkv.bias),
        out=block.out,
        scale=(block.out.in_features // block.n_heads) ** -0.5,
    )
    mlp = MLPParts(
        project=lambda x: (block.up(x), None),
        act=F.gelu,
        out=block.down,
        in_weights=common.linear_weights(block.up),
    )
    return BlockParts(ln1=block.norm_attention, attn=attention, ln2=block.norm_mlp, mlp=mlp)


def parts(module: MyViT) -> ViTParts:
    return ViTParts(
        family="my ViT",
        embed=lambda pixels: (module.tokens(pixels), None),
        blocks=tuple(block_parts(block) for block in module.blocks),
        ln_final=module.norm,
        pool=lambda tokens: tokens[:, 0],
        project=module.head,
        unembed=lambda: (module.head.weight, module.head.bias),
        is_classifier=True,
        reference=module,  # what parity is measured on
        image_size=(module.size, module.size),
        patch_size=(module.patch, module.patch),
    )


# %% [markdown]
# ## Check it
#
# `verify` tries every promise of a hooked model: parity with the source, hook points that can be read
# without changing anything and that change something when they are overwritten, attention rows that sum
# to one, weights that compute what the layers write, and patches where the layout says.

# %%
model = tt.HookedViT(mine, parts(mine))
result = tt.verify(model)
for check in result.checks:
    print("yes" if check.passed else "NO ", check.name, "-", check.detail)

# %% [markdown]
# A mistake is found. Here the scale of attention is wrong:


# %%
def wrong(module: MyViT) -> ViTParts:
    right = parts(module)
    blocks = tuple(replace(b, attn=replace(b.attn, scale=1.0)) for b in right.blocks)
    return replace(right, blocks=blocks)


for check in tt.verify(tt.HookedViT(mine, wrong(mine))).checks:
    if not check.passed:
        print("NO ", check.name, "-", check.detail)

# %% [markdown]
# ## Use it
#
# Everything works on it now: caches, interventions, metrics, discovery. A model of random weights has no
# outliers, and discovery says so.

# %%
pixels = torch.randn(8, 3, 64, 64)
with model.intervened(tt.TestTimeRegister({1: [7]})), torch.no_grad():
    logits, cache = model.run_with_cache(pixels)
print(logits.shape, cache["blocks.3.attn.hook_pattern"].shape, cache.layout)

# %%
print(tt.find_register_neurons(model, pixels))

# %% [markdown]
# To load it by name, make a source file of it, as the how-to *Add a model* of the documentation says.
