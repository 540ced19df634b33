"""What the sink of the testbed language model is good for: its loss with the sink, without, and with
something in its place.

Source: arXiv 2410.13835, section 2; arXiv 2506.08010, A.2 (k', v').
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ttreg_interp.hooked.language import HookedLM
from ttreg_interp.interventions import (
    AttentionBias,
    Empty,
    ExtraTokens,
    Intervention,
    KnockoutAttention,
)
from ttreg_interp.testbed.language_measures import settled
from ttreg_interp.testbed.language_task import BackcopyTask


@torch.no_grad()
def sink_layer(model: HookedLM, ids: Tensor) -> int:
    """The layer whose tokens attend most to BOS, without the first tokens of a text."""
    _, cache = model.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_pattern"))
    sinks = [
        float(settled(cache[f"blocks.{layer}.attn.hook_pattern"][..., 0].mean(dim=1)).mean())
        for layer in range(model.cfg.n_layers)
    ]
    return sinks.index(max(sinks))


@torch.no_grad()
def sink_arms(model: HookedLM, ids: Tensor) -> dict[str, Intervention]:
    """Interventions by name, all in the layer of the sink.

    k' and v' are the mean key and value of BOS there; an added token is one of zeros, to which nothing
    is moved.
    """
    layer, n_tokens = sink_layer(model, ids), ids.shape[1]
    hidden = KnockoutAttention(tuple(range(1, n_tokens)), (0,), layers=(layer,))
    _, cache = model.run_with_cache(
        ids, names_filter=lambda name: name.endswith(("hook_k", "hook_v"))
    )
    k, v = (cache[f"blocks.{layer}.attn.hook_{kind}"][:, 0].mean(dim=0)[None] for kind in "kv")
    return {
        "intact": Empty(),
        "sink hidden": hidden,
        "sink hidden, k' and v'": hidden + AttentionBias(k, v, layers=(layer,)),
        "sink hidden, k' and v' = 0": hidden
        + AttentionBias(k, torch.zeros_like(v), layers=(layer,)),
        "token of zeros, seen from layer 0": ExtraTokens(),
        "token of zeros, seen from the sink's layer": ExtraTokens(visible_from_layer=layer),
    }


@torch.no_grad()
def arm_losses(source: Any, task: BackcopyTask, ids: Tensor) -> dict[str, tuple[float, float]]:
    """Loss after words that are no triggers, and where the text determines the next token, by arm.

    Args:
        source: a trained GPT-2 with the softmax kernel.
        task: what the texts are of.
        ids: texts that it has not seen.
    """
    model = HookedLM.wrap(source)
    where = [settled(places)[:, :-1] for places in (task.free(ids), task.certain(ids))]
    losses = {}
    for name, intervention in sink_arms(model, ids).items():
        with model.intervened(intervention):
            logits = model(ids)
        loss = cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        losses[name] = (float(loss[where[0]].mean()), float(loss[where[1]].mean()))
    return losses
