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
# # Move outliers
#
# Register neurons decide *where* outliers are: their activation can be put on any token. This is the
# strongest evidence that they cause outliers, and it is a tool: what has been made an outlier hardly
# reaches the rest of the model as content.
#
# Source: [arXiv 2506.08010](https://arxiv.org/abs/2506.08010), section 3.2 and figure 1.

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
from ttreg_interp.interventions import CopyRegisterValuesTo, Mask, MoveNeurons, Shape
from ttreg_interp.testbed import photographs, planted_vit

model = tt.load("testbed:planted")
neurons = planted_vit().truth
picture = photographs()["astronaut"]
pixels = model.preprocess(picture)[None]
last = model.cfg.n_layers - 1


def maps(intervention):
    """Patch norms and [CLS] attention of the last layer under an intervention."""
    with torch.no_grad(), model.intervened(intervention):
        seen = tt.trace(model, pixels)
    return seen.layout.grid(seen.norms[last, 0]), seen.layout.grid(
        seen.attention[last, 0].mean(dim=0)
    )


def draw(arms):
    """One column an arm: norms above, on one colour scale; attention below, each on its own."""
    shown = {name: maps(intervention) for name, intervention in arms.items()}
    longest = max(float(norms.max()) for norms, _ in shown.values())
    size = (1.7 * len(arms) + 1.7, 3.6)
    figure, axes = plt.subplots(2, len(arms) + 1, figsize=size, dpi=90)
    axes[0, 0].imshow(picture)
    for (above, below), (name, (norms, attention)) in zip(
        axes[:, 1:].T, shown.items(), strict=True
    ):
        above.imshow(norms, vmin=0, vmax=longest)
        above.set_title(name, fontsize=9)
        below.imshow(attention, vmin=0)
        below.set_title(f"[CLS] attention, to {attention.max():.0%}", fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.tight_layout()


# %% [markdown]
# ## A heart
#
# `MoveNeurons` gives the neurons' strongest value to the chosen tokens, and zero to all others.

# %%
draw(
    {
        "intact": tt.Empty(),
        "heart": MoveNeurons(neurons, to=Shape("heart")),
        "cross": MoveNeurons(neurons, to=Shape("cross")),
    }
)

# %% [markdown]
# ## Patches, rows, masks
#
# Where to can be said in many ways: (row, column) of patches, a part of the layout, a mask on the
# patch grid, or a mask in pixels of the model's input.

# %%
in_pixels = torch.zeros(model.image_size, dtype=torch.bool)
in_pixels[20:90, 60:140] = True  # the face
places = {
    "two patches": ((0, 0), (13, 13)),
    "face": Mask(in_pixels, unit="pixels", share=0.5),
}
draw({name: MoveNeurons(neurons, to=place) for name, place in places.items()})

# %% [markdown]
# A test-time register is the same with an added token as the target:

# %%
by_hand = tt.ExtraTokens() + MoveNeurons(neurons, to="test_time_registers")
with torch.no_grad():
    with model.intervened(by_hand):
        one = model(pixels)
    with model.intervened(tt.TestTimeRegister(neurons)):
        other = model(pixels)
print(torch.equal(one, other))

# %% [markdown]
# ## The control
#
# Is it the size of an activation that makes an outlier, whatever the neuron? Give other neurons of the
# same layers the values of the register neurons: nothing appears, because the direction that a neuron
# writes decides (figures 24 and 29 of the paper).

# %%
chosen = tt.NeuronSet.of(neurons)
others = chosen.matched_random(seed=0, d_mlp=model.cfg.d_mlp)
copied = tt.ZeroNeurons(neurons) + MoveNeurons(others, to=Shape("heart"))
draw(
    {
        "register neurons": MoveNeurons(neurons, to=Shape("heart")),
        "random, own values": copied,
        "random, same values": CopyRegisterValuesTo(neurons, others, to=Shape("heart")),
    }
)
