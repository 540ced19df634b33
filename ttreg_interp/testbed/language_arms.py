"""What the sink of the testbed language model is good for: loss, sink and norm with the sink, without, and
with something in its place.

Source: arXiv 2410.13835, section 2; arXiv 2506.08010, Algorithm 2 (registers) and A.2 (k', v').
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ttreg_interp.discovery.sink_neurons import SinkNeurons, SinkOptions, find_sink_neurons
from ttreg_interp.hooked.language import HookedLM
from ttreg_interp.interventions import (
    AttentionBias,
    Empty,
    ExtraTokens,
    Intervention,
    KnockoutAttention,
    TestTimeRegister,
    ZeroNeurons,
)
from ttreg_interp.testbed.language_measures import settled
from ttreg_interp.testbed.language_task import BackcopyTask

EMERGED = 1.5
"""BOS of these models is an outlier from this ratio of norms on: none reaches the usual 4."""
DRAWS = 5
"""Sets of random neurons that a control is the mean over."""


@dataclass(frozen=True)
class ArmMeasures:
    """A model under one intervention, on texts that it has not seen."""

    loss_free: float
    """Cross-entropy after words that are no triggers, in nats."""
    loss_certain: float
    """... where the text determines the next token."""
    sink: float
    """Mean attention to BOS from words that are no triggers, in the layer of the sink."""
    sink_added: float
    """The same to the added token; 0 without one."""
    norm: float
    """Norm of BOS over the median of the other words: the largest after any block."""
    norm_added: float
    """The same of the added token."""

    @classmethod
    def mean(cls, many: list["ArmMeasures"]) -> "ArmMeasures":
        """Field by field."""
        rows = [asdict(one) for one in many]
        names = [field.name for field in fields(cls)]
        return cls(*(sum(row[name] for row in rows) / len(rows) for name in names))

    def to_dict(self) -> dict[str, float]:
        """Plain values for JSON."""
        return {name: round(value, 5) for name, value in asdict(self).items()}


@torch.no_grad()
def sink_layer(model: HookedLM, ids: Tensor) -> int:
    """The layer whose tokens attend most to BOS, without the first tokens of a text."""
    _, cache = model.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_pattern"))
    sinks = [
        float(settled(cache[f"blocks.{layer}.attn.hook_pattern"][..., 0].mean(dim=1)).mean())
        for layer in range(model.cfg.n_layers)
    ]
    return sinks.index(max(sinks))


def sink_neurons(model: HookedLM, task: BackcopyTask) -> SinkNeurons:
    """Register neurons of a trained model, on texts that nothing else is measured on."""
    ids = task.sample(64, torch.Generator().manual_seed(98))
    return find_sink_neurons(model, ids, SinkOptions(emerged=EMERGED, batch_size=64))


@torch.no_grad()
def sink_arms(model: HookedLM, ids: Tensor, layer: int) -> dict[str, Intervention]:
    """Interventions in the layer of the sink that move no neurons, by name.

    k' and v' are the mean key and value of BOS there.
    """
    hidden = KnockoutAttention("text", "bos", layers=(layer,))
    _, cache = model.run_with_cache(
        ids, names_filter=lambda name: name.endswith(("hook_k", "hook_v"))
    )
    k, v = (cache[f"blocks.{layer}.attn.hook_{kind}"][:, 0].mean(dim=0)[None] for kind in "kv")
    late = ExtraTokens(visible_from_layer=layer)
    return {
        "intact": Empty(),
        "sink hidden": hidden,
        "sink hidden, k' and v'": hidden + AttentionBias(k, v, layers=(layer,)),
        "sink hidden, k' and v' = 0": hidden
        + AttentionBias(k, torch.zeros_like(v), layers=(layer,)),
        "sink hidden, token of zeros": late + hidden,
        "token of zeros, seen from layer 0": ExtraTokens(),
        "token of zeros, seen from the sink's layer": late,
    }


def register_arms(neurons: Any, layer: int) -> dict[str, Intervention]:
    """Test-time registers, by name: BOS's activation of the neurons moved into an added token.

    BOS is the first token, so that the register in front learns nothing of later ones.
    """
    late = TestTimeRegister(neurons, visible_from_layer=layer)
    return {
        "register, seen from layer 0": TestTimeRegister(neurons),
        "register, seen from the sink's layer": late,
        "sink hidden, register": late + KnockoutAttention("text", "bos", layers=(layer,)),
        "neurons zeroed": ZeroNeurons(neurons),
    }


@torch.no_grad()
def measure_arms(source: Any, task: BackcopyTask, ids: Tensor) -> dict[str, ArmMeasures]:
    """Every arm, with random neurons in the place of the register neurons as control.

    Args:
        source: a trained GPT-2 with the softmax kernel.
        task: what the texts are of.
        ids: texts that it has not seen.
    """
    model = HookedLM.wrap(source)
    layer, neurons = sink_layer(model, ids), sink_neurons(model, task).neurons

    def measured(arms: Mapping[str, Intervention]) -> dict[str, ArmMeasures]:
        return {name: _measure(model, task, ids, arm, layer) for name, arm in arms.items()}

    found = measured(sink_arms(model, ids, layer))
    if not len(neurons):
        return found
    draws = [
        measured(register_arms(neurons.matched_random(seed, model.cfg.d_mlp), layer))
        for seed in range(DRAWS)
    ]
    controls = {
        f"{name} (random neurons)": ArmMeasures.mean([draw[name] for draw in draws])
        for name in draws[0]
    }
    return found | measured(register_arms(neurons, layer)) | controls


def _measure(
    model: HookedLM, task: BackcopyTask, ids: Tensor, arm: Intervention, layer: int
) -> ArmMeasures:
    names = (f"blocks.{layer}.attn.hook_pattern", "hook_resid_post")
    with model.intervened(arm):
        n_added = model.n_added_tokens
        logits, cache = model.run_with_cache(ids, names_filter=lambda name: name.endswith(names))
    loss = cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    free, certain = (settled(where) for where in (task.free(ids), task.certain(ids)))
    pattern = cache[names[0]].mean(dim=1)[:, n_added:]  # queries: the text
    pattern = pattern[..., pattern.shape[-1] - ids.shape[1] - n_added :]  # k' stands in front
    norms = torch.stack([cache["resid_post", at].norm(dim=-1) for at in range(model.cfg.n_layers)])
    norms = (norms.mean(dim=1).T / norms[..., n_added + 1 :].flatten(1).median(dim=1).values).T
    return ArmMeasures(
        loss_free=float(loss[free[:, :-1]].mean()),
        loss_certain=float(loss[certain[:, :-1]].mean()),
        sink=float(pattern[..., n_added][free].mean()),
        sink_added=float(pattern[..., :n_added].sum(dim=-1)[free].mean()),
        norm=float(norms[:, n_added].max()),
        norm_added=float(norms[:, :n_added].max()) if n_added else 0.0,
    )
