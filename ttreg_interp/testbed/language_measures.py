"""What is watched while the testbed language model learns: loss, sink, drain and norm."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import cross_entropy

from ttreg_interp.testbed.language_task import BackcopyTask

SETTLED = 16
"""Queries before this place are left out: they have few keys to choose from."""


@dataclass(frozen=True)
class Measures:
    """A model at one step of its training, on texts that it has not seen."""

    step: int
    """Updates so far."""
    loss_free: float
    """Cross-entropy after words that are no triggers, in nats."""
    loss_certain: float
    """... where the text determines the next token."""
    accuracy_certain: float
    """Share of these tokens that the model gets right."""
    sink_free: tuple[float, ...]
    """By layer: mean attention to BOS from words that are no triggers, mean over heads."""
    sink_certain: tuple[float, ...]
    """... from triggers whose successor is determined: an active head does not sink there."""
    drain: tuple[float, ...]
    """By layer: norm of the value of BOS over the median of other values."""
    norm_ratio: tuple[float, ...]
    """What enters block 0, then after every block: norm of BOS over the median of other tokens."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {key: _rounded(value) for key, value in asdict(self).items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


@torch.no_grad()
def measure(
    model: Any, task: BackcopyTask, ids: Int[Tensor, "batch token"], step: int = 0
) -> Measures:
    """Run the texts once and read everything off.

    Args:
        model: a GPT-2 of transformers with any attention kernel that hands out its pattern.
        task: what the texts are of.
        ids: texts of the task.
        step: of the training.
    """
    with _values(model) as values:
        out = model(
            input_ids=ids, use_cache=False, output_attentions=True, output_hidden_states=True
        )
    certain, free = (settled(where) for where in (task.certain(ids), task.free(ids)))
    loss = cross_entropy(out.logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    right = (out.logits[:, :-1].argmax(dim=-1) == ids[:, 1:]).float()
    sinks = [pattern[..., 0].mean(dim=1) for pattern in out.attentions]
    residuals = [*out.hidden_states[:1], *values["residuals"]]
    return Measures(
        step=step,
        loss_free=float(loss[free[:, :-1]].mean()),
        loss_certain=float(loss[certain[:, :-1]].mean()),
        accuracy_certain=float(right[certain[:, :-1]].mean()),
        sink_free=tuple(float(sink[free].mean()) for sink in sinks),
        sink_certain=tuple(float(sink[certain].mean()) for sink in sinks),
        drain=tuple(_first_over_others(value) for value in values["values"]),
        norm_ratio=tuple(_first_over_others(residual) for residual in residuals),
    )


def settled(places: Tensor) -> Shaped[Tensor, "batch token"]:
    """What is said of the places of a text, zero at the first of them."""
    late = torch.arange(places.shape[1], device=places.device) >= SETTLED
    return places * late


def _first_over_others(rows: Float[Tensor, "batch token d"]) -> float:
    """Mean norm of the first row over the median norm of the others."""
    norms = rows.norm(dim=-1)
    return float(norms[:, 0].mean() / norms[:, 1:].median())


@contextmanager
def _values(model: Any) -> Iterator[dict[str, list[Tensor]]]:
    """Values of every layer and the residual stream after every block, in the order of a run."""
    kept: dict[str, list[Tensor]] = {"values": [], "residuals": []}
    handles = []
    for block in model.transformer.h:
        handles += [
            block.attn.c_attn.register_forward_hook(
                lambda _, inputs, out: kept["values"].append(out.chunk(3, dim=-1)[2])
            ),
            block.register_forward_hook(lambda _, inputs, out: kept["residuals"].append(out)),
        ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()
