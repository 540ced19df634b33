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
# # Attention bias and theory
#
# Why should a model want outliers? A softmax must put its weight somewhere. A head with nothing to say
# can put it on a token that carries nothing: the head does a *no-op*. Section 6 of
# [arXiv 2506.08010](https://arxiv.org/abs/2506.08010) gives a model of it in closed form, and concludes
# that one more key and value in each head, $k'$ and $v'$, can do what register neurons do.

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
from ttreg_interp.testbed import photograph_tensor, planted_vit
from ttreg_interp.theory.assumptions import Assumptions, Setting, draw
from ttreg_interp.theory.attention_bias import FitOptions

# %% [markdown]
# ## The closed-form model
#
# Two blocks; one neuron makes a sink of strength $t$. What attention changes in the output falls as
# $e^{-ct}$, with $c$ known beforehand. Without the neuron it does not fall at all, and without one of
# the assumptions it stays or grows.

# %%
strength = torch.linspace(0.5, 60, 120, dtype=torch.float64)
noop = draw(Setting(form="gain"), seed=0)
leaky = draw(Setting(form="gain", assumptions=Assumptions(head_blind_to_u2=False)), seed=0)
t = strength / noop.rate()
figure, axis = plt.subplots(figsize=(5.5, 3), dpi=90)
axis.semilogy(strength, noop.error(t), label="register neuron")
axis.semilogy(strength, noop.leading_error(t), ":", label="predicted")
axis.semilogy(strength, noop.error(t, "zeroed"), label="neuron zeroed")
axis.semilogy(strength, noop.error(t, "register"), "--", label="moved to a register")
axis.semilogy(strength, leaky.error(t), label="head not blind to the neuron")
axis.set(xlabel="strength of the sink, times its rate c", ylabel="what attention changes")
axis.set_ylim(1e-16, 1e4)
axis.legend(fontsize=7)
figure.tight_layout()

# %% [markdown]
# ## k' and v' in place of neurons
#
# `mean` takes the mean key and value of a test-time register over images, as the paper does;
# `least_squares` then fits $v'$ in closed form. What is reported is the change of the output on images
# that were not fitted on, beside that of zeroing alone and of the register.

# %%
model = tt.load("testbed:planted", image_size=112)
neurons = planted_vit(image_size=112).truth
pixels = photograph_tensor(112)
options = FitOptions(held_out=0.5)
fits = {
    method: tt.fit_attention_bias(model, pixels, neurons, method, options)
    for method in ("mean", "least_squares")
}
for method, fit in fits.items():
    print(
        method,
        "bias",
        fit.held_out.bias,
        "zeroed",
        fit.held_out.zeroed,
        "register",
        fit.held_out.register,
    )

# %% [markdown]
# The fit is an intervention like any other: the neurons zeroed, and a key and a value added.

# %%
bias = fits["least_squares"].intervention()
print(bias)
table = tt.compare(
    model,
    pixels,
    {"register": tt.TestTimeRegister(neurons), "zeroed": tt.ZeroNeurons(neurons), "bias": bias},
)
print(table)

# %% [markdown]
# ## Does this head do a no-op?
#
# `noop_measures` asks it of every head: how much attention the sink draws, how long its values are, how
# constant what it gives is, and by how much it turns the head off (`no_op`, 1 is entirely).

# %%
with model.intervened(tt.TestTimeRegister(neurons)):
    measures = tt.noop_measures(model, pixels, sink="test_time_registers", removal=False)
behind = [head for head in measures.heads if head.layer > 4]
print(f"attention on the register {sum(h.attention.estimate for h in behind) / len(behind):.3f}")
print(f"its values over others'   {sum(h.value_ratio.estimate for h in behind) / len(behind):.3f}")
print(f"no-op                     {sum(h.no_op for h in behind) / len(behind):.3f}")

# %%
figure, axis = plt.subplots(figsize=(5, 2.6), dpi=90)
grid = torch.zeros(model.cfg.n_heads, model.cfg.n_layers)
for head in measures.heads:
    grid[head.head, head.layer] = head.no_op
shown = axis.imshow(grid, vmin=0, vmax=1, aspect="auto")
axis.set(xlabel="layer", ylabel="head", title="no_op")
figure.colorbar(shown)
figure.tight_layout()

# %% [markdown]
# The concept pages *Why an outlier token can switch attention off* and *A key and a value in place of
# register neurons* of the documentation have the proofs, the assumptions one by one, and a real model.
