"""How sparse the mapped neurons are, and whether they fire where norms are large."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.report.curves import arm_layout
from ttreg_interp.report.run import Run
from ttreg_interp.report.sparsity import by_rank, ranks
from ttreg_interp.report.tables import Chart

CONTROL = "mean over all neurons of these layers"
"""What the mapped neurons are compared with."""
MOST_CURVES = 5
"""More curves could not be told apart."""


@dataclass(frozen=True)
class NeuronFacts:
    """One neuron in the first arm, over the recorded images."""

    layer: int
    """Of its MLP."""
    neuron: int
    """Its number there."""
    largest: float
    """Largest |activation| on a patch, mean over images."""
    share_active: float
    """Share of patches with more than half of their image's largest |activation|."""
    norm_correlation: float
    """Correlation of |activation| with the patch norm after the last layer, mean over images."""
    by_rank: tuple[float, ...]
    """|activation| by rank of the patch, in units of the largest, mean over images."""


def neuron_facts(run: Run) -> list[NeuronFacts]:
    """Facts of every mapped neuron, in the order of the run."""
    pairs = run.info["neurons"]
    if not pairs:
        return []
    layout, maps = arm_layout(run.info["arms"][0]), run.of_arm(0)
    activation = maps["neurons"][..., layout.patches].abs()
    norms = maps["norms"][:, -1:, layout.patches]
    largest = activation.amax(dim=-1)
    active = (activation > largest[..., None] / 2).float().mean(dim=-1)
    columns = (largest, active, _correlation(activation, norms))
    rows = torch.stack([column.mean(dim=0) for column in columns], dim=1).tolist()
    curves = by_rank(activation).mean(dim=0).tolist()
    return [
        NeuronFacts(layer, neuron, top, share, correlation, tuple(curve))
        for (layer, neuron), (top, share, correlation), curve in zip(
            pairs, rows, curves, strict=True
        )
    ]


def sparsity_chart(run: Run, facts: list[NeuronFacts]) -> Chart:
    """Activation by rank of the patch: the first mapped neurons, and the mean of their layers."""
    ordinary = run.of_arm(0)["ordinary"].double().mean(dim=(0, 1))
    series = [
        (f"layer {one.layer}, neuron {one.neuron}", one.by_rank) for one in facts[:MOST_CURVES]
    ]
    return Chart(
        title="|Activation| by rank of the patch, in units of the largest",
        x_label="patch, by rank",
        x=tuple(float(rank) for rank in ranks(arm_layout(run.info["arms"][0]).n_patches)),
        series=((CONTROL, tuple(ordinary.tolist())), *series),
    )


def facts_table(facts: list[NeuronFacts]) -> list[dict[str, Any]]:
    """Rows for a table."""
    return [
        {
            "layer": one.layer,
            "neuron": one.neuron,
            "largest |activation|": one.largest,
            "share of patches above half of it": one.share_active,
            "correlation with the last patch norm": one.norm_correlation,
        }
        for one in facts
    ]


def _correlation(
    a: Float[Tensor, "batch neuron patch"], b: Float[Tensor, "batch 1 patch"]
) -> Float[Tensor, "batch neuron"]:
    """Pearson's, 0 where one of both is constant."""
    a, b = (x.double() - x.double().mean(dim=-1, keepdim=True) for x in (a, b))
    scale = a.norm(dim=-1) * b.norm(dim=-1)
    return torch.where(scale > 0, (a * b).sum(dim=-1) / scale.clamp_min(1e-300), 0.0).float()
