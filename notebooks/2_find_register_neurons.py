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
# # Find register neurons in your model
#
# Set `MODEL` and `IMAGES` to yours. The defaults are a model whose register neurons are known, so
# that the answer can be checked, and photographs that come with scikit-image and scikit-learn.
#
# Some hundred images that look like your data are enough; they need no labels.

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
from ttreg_interp.discovery import published_lists
from ttreg_interp.testbed import planted_vit, save_photographs

MODEL = "testbed:planted"  # or "open_clip:ViT-B-16/laion2b_s34b_b88k", "hf:facebook/dinov2-large"
IMAGES = "photographs"  # a folder, a .txt file of paths, one image
IMAGE_SIZE = 112  # None: the model's own

save_photographs(IMAGES, size=112)
model = tt.load(MODEL, image_size=IMAGE_SIZE)
images = tt.images(IMAGES)

# %% [markdown]
# ## Are there outliers?
#
# Norms are those of the residual stream before the final norm. The threshold is found from the
# images: it lies in the valley between ordinary and outlying norms, if there is one.

# %%
report = tt.find_outliers(model, images)
print(report)

# %% [markdown]
# ## Which neurons make them?
#
# One pass scores every neuron of every layer. Held-out images then tell how few of them are enough:
# neurons are added, best first, until at most 5 % of the outliers are left.

# %%
found = tt.find_register_neurons(model, images)
print(found)

# %%
curve = found.evidence["curve"]
print(curve[0])
figure, axis = plt.subplots(figsize=(5, 2.6), dpi=90)
axis.plot([point["k"] for point in curve], [point["outliers_left"] for point in curve], "o-")
axis.set(xlabel="neurons moved to the register", ylabel="share of outliers left")
figure.tight_layout()

# %% [markdown]
# The truth is known here, and it is found exactly:

# %%
print("planted", planted_vit(image_size=112).truth)
print("found  ", found.by_layer())

# %% [markdown]
# ## Why believe it?
#
# Beside the list stands evidence, measured on images that the scores have not seen: what moving the
# neurons does, what as many random neurons do, how often each neuron is found when the images are
# drawn again, and whether its output row points where outliers point.


# %%
def mean(number):
    """Means stand alone or with their interval."""
    return number["estimate"] if isinstance(number, dict) else number


for arm, numbers in found.evidence["held_out"]["arms"].items():
    left, drift = mean(numbers["outliers_left"]), mean(numbers["drift"])
    print(f"{arm:24s} outliers left {left:5.0%}   drift of the output {drift:.4f}")

# %%
for layer in found.evidence["weights"]["layers"]:
    print(
        layer["layer"],
        "cosine",
        round(min(layer["cosine"]), 4),
        "random rows",
        round(layer["random_cosine"], 4),
    )

# %% [markdown]
# ## Keep it
#
# The file says which model (a hash of its weights), images, threshold and versions it came from.
# It is refused for other weights.

# %%
found.save("neurons.json")
again = tt.RegisterNeurons.load("neurons.json").check_model(model)
print(again.neurons == found.neurons, again.weights_hash[:12])

# %% [markdown]
# From a shell: `ttreg find MODEL --images FOLDER --out neurons.json`, and then
# `ttreg apply MODEL --neurons neurons.json --images FOLDER --out OUT` for numbers, figures and a page.
#
# ## A model without outliers
#
# It yields no neurons, and says so.

# %%
clean = tt.load("testbed:clean", image_size=112)
print(tt.find_register_neurons(clean, images, tt.FindConfig(survey_images=8)))

# %% [markdown]
# ## Lists that others published

# %%
for name in published_lists():
    published = tt.RegisterNeurons.published(name)
    print(f"{name:48s} {len(published):4d} neurons of {published.model}")
