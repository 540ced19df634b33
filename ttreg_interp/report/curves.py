"""What a run says in numbers: by arm and layer, the means over its images."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.hooked import TokenLayout
from ttreg_interp.report.run import Run


@dataclass(frozen=True)
class ArmCurves:
    """One arm, layer by layer: means over the images."""

    name: str
    """Of the arm."""
    max_norm: tuple[float, ...]
    """Largest patch norm."""
    median_norm: tuple[float, ...]
    """Median patch norm."""
    max_over_median: tuple[float, ...]
    """Mean over images of largest / median patch norm."""
    max_attention: tuple[float, ...]
    """Largest attention (mean over heads) that one patch draws from the reader: [CLS], or in a
    model without it the mean over patches as queries."""
    register_attention: tuple[float, ...] | None
    """Attention that test-time registers draw from the reader; None where the arm adds none."""
    output_cosine: float
    """Mean cosine between the output and the first arm's."""


def arm_layout(arm: dict[str, Any]) -> TokenLayout:
    """The token axis of an arm of `run.json`."""
    return TokenLayout(**arm["layout"])


def read_curves(run: Run) -> list[ArmCurves]:
    """The curves of every arm, from the recorded maps."""
    return [_arm_curves(run, number) for number in range(len(run.info["arms"]))]


def reader_rows(run: Run, number: int) -> Float[Tensor, "batch layer token"]:
    """Attention of the reader, mean over heads: of [CLS], else of the mean patch."""
    layout = arm_layout(run.info["arms"][number])
    rows = run.of_arm(number)["exact"][..., int(run.info["attention"]["elsewhere"]) :]
    return rows[:, :, layout.cls].mean(dim=2) if layout.n_cls else rows[:, :, -1]


def _arm_curves(run: Run, number: int) -> ArmCurves:
    arm, maps = run.info["arms"][number], run.of_arm(number)
    layout = arm_layout(arm)
    norms = maps["norms"][..., layout.patches]
    largest, median = norms.amax(dim=-1), norms.quantile(0.5, dim=-1)
    attention = reader_rows(run, number)
    registers = attention[..., layout.test_time_registers].sum(dim=-1)
    intact = run.of_arm(0)["output"]
    return ArmCurves(
        name=arm["name"],
        max_norm=_mean(largest),
        median_norm=_mean(median),
        max_over_median=_mean(largest / median.clamp_min(torch.finfo(median.dtype).tiny)),
        max_attention=_mean(attention[..., layout.patches].amax(dim=-1)),
        register_attention=_mean(registers) if layout.n_test_time_registers else None,
        output_cosine=float(torch.cosine_similarity(maps["output"], intact, dim=1).mean()),
    )


def _mean(values: Float[Tensor, "batch layer"]) -> tuple[float, ...]:
    return tuple(values.double().mean(dim=0).tolist())
