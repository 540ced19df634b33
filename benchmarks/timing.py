"""Interleaved A/B timing: every round runs every arm once, so that a noisy machine hits all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Work = Callable[[], object]


@dataclass(frozen=True)
class Ratio:
    """Time of one arm over that of another."""

    median: float
    """Ratio of the medians over the rounds."""
    low: float
    """First quartile of the rounds' own ratios."""
    high: float
    """Third quartile of the rounds' own ratios."""

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interleaved(arms: Mapping[str, Work], rounds: int, device: str = "cpu") -> dict[str, list]:
    """Seconds of every arm in every round; the order is turned each round, the first one is dropped.

    Args:
        arms: name -> one unit of work.
        rounds: timed rounds, after one that warms up.
        device: 'cpu' takes the CPU time of the process, which other processes do not lengthen;
            'cuda' takes events.
    """
    clock = _cuda_seconds if device.startswith("cuda") else _cpu_seconds
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            taken = clock(arms[name])
            if number:
                seconds[name].append(taken)
    return seconds


def _cpu_seconds(work: Work) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _cuda_seconds(work: Work) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def ratio(arm: list[float], base: list[float]) -> Ratio:
    """Ratio of medians, with the quartiles of the ratios within rounds.

    Example:
        >>> print(ratio([2.0, 2.0, 4.0], [1.0, 1.0, 2.0]))
        2.000 [2.000, 2.000]
    """
    pairs = [a / b for a, b in zip(arm, base, strict=True)]
    low, _, high = (
        statistics.quantiles(pairs, n=4, method="inclusive") if len(pairs) > 1 else pairs * 3
    )
    return Ratio(statistics.median(arm) / statistics.median(base), low, high)
