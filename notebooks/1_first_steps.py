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
# # First steps
#
# A vision transformer with register neurons, seen through hook points; the outlier tokens that these
# neurons make; and a test-time register that takes the outliers away without any training.
#
# The model here is built in a moment and its register neurons are known, so that everything can be
# checked and nothing is downloaded. With a real model, only the first line changes:
# `tt.load("open_clip:ViT-B-16/laion2b_s34b_b88k")`.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("ttreg_interp") is None:  # on Colab, say
    command = [sys.executable, "-m", "pip", "install", "--quiet", "ttreg-interp[demo]"]
    subprocess.run(command, check=True)

# %%
import matplotlib.pyplot as plt
import torch

import ttreg_interp as tt
from ttreg_interp.testbed import photographs, planted_vit

model = tt.load("testbed:planted")
names = ["astronaut", "chelsea", "coffee", "rocket"]
pictures = [photographs()[name] for name in names]
pixels = torch.stack([model.preprocess(picture) for picture in pictures])
layout = model.layout(pixels.shape)
print(layout)

# %% [markdown]
# ## Look inside
#
# Hook points carry TransformerLens' names. `run_with_cache` returns the output and the activations.
# `layout` says which rows of the token axis are [CLS], registers and patches, and turns patch rows
# into a picture.

# %%
wanted = ["blocks.11.hook_resid_post", "blocks.11.attn.hook_pattern"]
with torch.no_grad():
    output, cache = model.run_with_cache(pixels, names_filter=wanted)
norms = cache["resid_post", 11].norm(dim=-1)[:, layout.patches]
print(f"median patch norm {norms.median():.1f}, largest {norms.max():.1f}")


# %%
def maps_of_last_layer(pixels):
    """Patch norms, and [CLS] attention averaged over heads, as pictures."""
    with torch.no_grad():
        _, cache = model.run_with_cache(pixels, names_filter=wanted)
    norms = cache["resid_post", 11].norm(dim=-1)
    attention = cache["pattern", 11][:, :, 0].mean(dim=1)
    return cache.layout.grid(norms), cache.layout.grid(attention)


def draw(norms, attention):
    """One row a picture; maps of a kind share their colours."""
    columns = [(title, maps, norms) for title, maps in norms.items()]
    columns += [(title, maps, attention) for title, maps in attention.items()]
    figure, axes = plt.subplots(len(pictures), len(columns) + 1, figsize=(7, 5.2), dpi=90)
    for row, picture in enumerate(pictures):
        axes[row, 0].imshow(picture)
        for axis, (title, maps, kind) in zip(axes[row, 1:], columns, strict=True):
            axis.imshow(maps[row], vmin=0, vmax=max(float(one.max()) for one in kind.values()))
            if row == 0:
                axis.set_title(title, fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.tight_layout()


before = maps_of_last_layer(pixels)
draw({"patch norm": before[0]}, {"[CLS] attention": before[1]})

# %% [markdown]
# A few patches are some 25 times as long as the others, and [CLS] looks at hardly anything else.
# They are not where the picture has its content: they lie in flat regions.
#
# ## Take the outliers away
#
# The neurons that make these outliers are known here. A test-time register is one added, untrained
# token; the neurons' strongest activation is moved into it and set to zero everywhere else.

# %%
neurons = planted_vit().truth
clean = tt.TestTimeRegister(neurons)
with model.intervened(clean):
    after = maps_of_last_layer(pixels)
    with torch.no_grad():
        clean_output = model(pixels)
draw(
    {"norm": before[0], "norm, register": after[0]},
    {"attention": before[1], "attention, register": after[1]},
)

# %% [markdown]
# [CLS] now looks at the register, which is not on the map; the patches are left alone.

# %%
with model.intervened(clean):
    seen = tt.trace(model, pixels)
print(f"attention of [CLS] to the register: {seen.register_attention[11].mean():.1%}")

# %% [markdown]
# The output has hardly changed. Zeroing the same neurons also removes the outliers, but the model
# needs something to attend to: its output becomes another one.

# %%
with model.intervened(tt.ZeroNeurons(neurons)), torch.no_grad():
    zeroed_output = model(pixels)
for name, other in {"register": clean_output, "zeroed": zeroed_output}.items():
    change = (other - output).norm(dim=-1) / output.norm(dim=-1)
    print(f"{name:9s} changes the output by {change.mean():.3f} of its length")

# %% [markdown]
# Interventions are values: they print, compare, compose with `+`, and go to JSON and back.

# %%
print(clean)
print(clean + tt.ExtraTokens())
print(tt.Intervention.from_json(clean.to_json()) == clean)

# %% [markdown]
# ## Use it elsewhere
#
# `bake` gives back a module of the source's own class, with the register inside and no hooks.

# %%
baked = tt.bake(model, clean)
with torch.no_grad():
    same = torch.equal(baked(pixels), clean_output)
print(type(baked).__name__, same)
