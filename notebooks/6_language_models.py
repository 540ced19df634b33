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
# # Massive activations and sinks of language models
#
# In language models the outlier is mostly the first token: one or two entries of its residual stream are
# thousands of times as large as the others (*massive activations*,
# [arXiv 2402.17762](https://arxiv.org/abs/2402.17762)), and many heads look at it (*attention sink*). The
# same hook points, interventions and laws hold as for images.
#
# The model here is small and random, and a massive activation and a sink are planted in it, so that what is
# found can be checked. With a real one: `tt.load("hf-lm:ORGANISATION/MODEL")`.

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
from ttreg_interp.hooked import HookedLM
from ttreg_interp.interventions import SetMassiveActivations
from ttreg_interp.metrics.language import language_loss
from ttreg_interp.metrics.massive_activations import massive_activations
from ttreg_interp.metrics.sinks import attention_sinks
from ttreg_interp.testbed.planted_lm import planted_lm

planted = planted_lm("llama")
model = HookedLM.wrap(planted.module)
texts = planted.texts(n=16, length=48)  # drawn by the model itself, so that it predicts them well
print(texts.shape, "register neurons", planted.truth)

# %% [markdown]
# ## Which entries are massive?
#
# Above 100 *and* above 1000 times the median magnitude of the text. They appear after one block and are
# taken back by another.

# %%
found = massive_activations(model, texts)
print(found)
print("planted: dimensions", planted.dims, "from block", planted.step_up, "to", planted.step_down)

# %%
figure, axis = plt.subplots(figsize=(5, 2.6), dpi=70)
axis.semilogy([layer.top[0] for layer in found.layers], "o-", label="largest |x|")
axis.semilogy([layer.median for layer in found.layers], "o-", label="median |x|")
axis.set(xlabel="after block")
axis.legend(fontsize=8)
figure.tight_layout()

# %% [markdown]
# ## Who looks at it?
#
# A head has a sink at a key if its queries give that key more than 30 % of their attention. The sink's
# values are small (a *value drain*): being looked at, it says little.

# %%
sinks = attention_sinks(model, texts)
print(sinks)

# %% [markdown]
# ## Is it needed?
#
# The loss, in nats a token, when the entries are set to zero, to their mean, or when the neurons that
# write them are zeroed; beside it as many random neurons of the same layer.

# %%
with torch.no_grad():
    _, cache = model.run_with_cache(texts, names_filter=f"blocks.{planted.step_up}.hook_resid_post")
rows = cache["resid_post", planted.step_up][:, 0]  # the first token of every text
means = tuple(float(rows[:, dim].mean()) for dim in planted.dims)
neurons = tt.NeuronSet.of(planted.truth)
arms = {
    "intact": tt.Empty(),
    "entries zeroed": SetMassiveActivations(planted.step_up, planted.dims, (0.0, 0.0), tokens=(0,)),
    "entries at their mean": SetMassiveActivations(
        planted.step_up, planted.dims, means, tokens=(0,)
    ),
    "neurons zeroed": tt.ZeroNeurons(neurons),
    "random neurons zeroed": tt.ZeroNeurons(neurons.matched_random(0, model.cfg.d_mlp)),
    "test-time register": tt.TestTimeRegister(neurons),
}
for name, arm in arms.items():
    with model.intervened(arm):
        rate = attention_sinks(model, texts).at_key
        print(f"{name:22s} loss {language_loss(model, texts).loss()}   heads that sink {rate:.0%}")

# %% [markdown]
# What the entries *are* hardly matters, that they are *constant* does: their mean in their place changes
# nothing. Under a test-time register the first row is the register, and that is where the heads look.
# A causal model can move to it only what stands at the first token: later ones would look ahead.
