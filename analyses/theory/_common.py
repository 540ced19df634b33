"""What the theory scripts share: intervals, a figure style, and where results go."""

import json
import math
import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from scipy import stats

from ttreg_interp._version import __version__

# Okabe and Ito's palette: told apart under every common form of colour blindness.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#7F7F7F",
)

COLUMN, PAGE = 3.3, 6.8
"""Widths in inches of one and of two columns of a paper."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % confidence interval."""

    mean: float
    """Mean over the draws."""
    low: float
    """Lower end, from Student's t over the draws."""
    high: float
    """Upper end."""
    draws: int
    """How many random models."""

    def __str__(self) -> str:
        return f"{self.mean:.6g} [{self.low:.6g}, {self.high:.6g}]"


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent draws and its 95 % interval."""
    n, mean = len(values), math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = float(stats.t.ppf(0.975, n - 1)) * spread
    return Interval(mean, mean - half, mean + half, n)


def style() -> AbstractContextManager[None]:
    """Figures that are read in a paper's column: 7 point letters, thin lines, text kept as text."""
    return matplotlib.rc_context(
        {
            "font.size": 7,
            "axes.titlesize": 7,
            "legend.fontsize": 6,
            "legend.frameon": False,
            "axes.linewidth": 0.6,
            "lines.linewidth": 1.2,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "svg.fonttype": "none",
            "svg.hashsalt": "ttreg_interp",
        }
    )


def save(out: Path, config: Any, numbers: dict[str, Any], words: str, figure: Figure) -> None:
    """Write result.json, summary.md, figure.png and figure.svg into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in asdict(config).items() if name != "out"}
    result = {
        "configuration": settings,
        "versions": {
            "ttreg_interp": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "numbers": {
            name: asdict(v) if isinstance(v, Interval) else v for name, v in numbers.items()
        },
    }
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    (out / "summary.md").write_text(words + "\n")
    with style():
        figure.savefig(out / "figure.png", dpi=300)
        figure.savefig(out / "figure.svg", metadata={"Date": None})
    print(words)


def log_strengths(low: float, high: float, count: int) -> torch.Tensor:
    """Strengths at equal ratios."""
    return torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64)


def log_slope(errors: torch.Tensor, at: torch.Tensor) -> float:
    """d log(error) / d strength between two strengths."""
    return float((errors[1] / errors[0]).log() / (at[1] - at[0]))
