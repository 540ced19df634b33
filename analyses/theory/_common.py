"""What the scripts on the closed-form model share."""

import math

import torch


def log_strengths(low: float, high: float, count: int) -> torch.Tensor:
    """Strengths at equal ratios."""
    return torch.logspace(math.log10(low), math.log10(high), count, dtype=torch.float64)


def log_slope(errors: torch.Tensor, at: torch.Tensor) -> float:
    """d log(error) / d strength between two strengths."""
    return float((errors[1] / errors[0]).log() / (at[1] - at[0]))
