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
# # Causal ablation with controls
#
# "We zeroed these neurons and the outliers went away" is half an experiment. The other half: what as
# many random neurons do, what the added token does by itself, what zeroing costs, and how sure the
# numbers are. `compare` runs all arms on the same images.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("ttreg_interp") is None:  # on Colab, say
    command = [sys.executable, "-m", "pip", "install", "--quiet", "ttreg-interp[demo]"]
    subprocess.run(command, check=True)

# %%
import matplotlib.pyplot as plt

import ttreg_interp as tt
from ttreg_interp.interventions import ShuffleNeurons, mean_neurons
from ttreg_interp.metrics.arm_metrics import MaxOverMedian
from ttreg_interp.metrics.compare import random_controls
from ttreg_interp.testbed import photograph_tensor, planted_vit

model = tt.load("testbed:planted", image_size=112)
neurons = tt.NeuronSet.of(planted_vit(image_size=112).truth)
pixels = photograph_tensor(112)
print(neurons)

# %% [markdown]
# ## Arms
#
# An arm is one intervention; a control is several draws under one name.

# %%
arms = {
    "register": tt.TestTimeRegister(neurons),
    "zeroed": tt.ZeroNeurons(neurons),
    "mean": mean_neurons(model, neurons, pixels.split(8)),
    "shuffled over tokens": ShuffleNeurons(neurons, seed=0),
    "token alone": tt.ExtraTokens(),
    "random zeroed": random_controls(neurons, model.cfg.d_mlp, n=5),
    "random moved": random_controls(neurons, model.cfg.d_mlp, n=5, make=tt.TestTimeRegister),
}
table = tt.compare(model, pixels, arms)
print(table)

# %% [markdown]
# How to read it:
#
# - *register* against *zeroed*: both remove the outliers, only one keeps the output. So the model
#   needs the outliers' effect on attention, and does not need them on patches.
# - *token alone* leaves the outliers: it is not the added token that cleans, but what is moved.
# - *random zeroed*, *random moved*: an arm has an effect of its own if it lies outside the range of
#   the draws.
# - *shuffled over tokens* keeps every value and changes only where it is.

# %%
names = list(arms)
values = [table[name, "relative change"].value for name in names]
figure, axis = plt.subplots(figsize=(6, 2.6), dpi=90)
low = [value.estimate - value.low for value in values]
high = [value.high - value.estimate for value in values]
axis.errorbar([value.estimate for value in values], range(len(names)), xerr=[low, high], fmt="o")
axis.set_yticks(range(len(names)), names)
axis.invert_yaxis()
axis.set_xlabel("relative change of the output, 95 % interval")
figure.tight_layout()

# %% [markdown]
# ## One layer at a time
#
# Without those of layer 2 nothing is left: they set off the others. Without those of layer 3 or 4 a part
# of the norm is missing: these amplify. A neuron may be needed and write little itself.

# %%
single = {f"layer {layer}": tt.ZeroNeurons({layer: ns}) for layer, ns in neurons.layers}
print(tt.compare(model, pixels, single, [MaxOverMedian()]))

# %% [markdown]
# ## Numbers of single images
#
# Intervals are bootstrap intervals over images, and differences are paired. The numbers of every
# image are there for tests of your own.

# %%
change = table.per_image["register"]["relative change"]
print(change)
print(table["register", "max/median norm, block 11"].difference)

# %% [markdown]
# An arm is data, and so is a result: `table.to_dict()` and `table.to_markdown()` hold the
# interventions, the hash of the weights, the seed and the versions.

# %%
body = table.to_dict()
print(sorted(body))
print(body["arms"]["zeroed"])
