"""Pictures of discovery: outliers by layer, scores by rank, the greedy curve."""

from pathlib import Path
from typing import Any

_GREY, _RED = "0.6", "#b2182b"


def plot_neurons(found: Any, path: Path) -> None:
    """Scores by rank with the chosen neurons marked, and the greedy curve where there is one."""
    from matplotlib.figure import Figure

    curve = found.evidence.get("curve", [])
    figure = Figure(figsize=(9 if curve else 5, 3.4), layout="constrained")
    axes = figure.subplots(1, 2 if curve else 1, squeeze=False)[0]
    _plot_ranking(axes[0], found)
    if curve:
        _plot_curve(axes[1], curve, len(found))
    figure.suptitle(f"{found.model}: {len(found)} register neurons", fontsize="medium")
    figure.savefig(path)


def _plot_ranking(axes: Any, found: Any) -> None:
    chosen = set(found.neurons)
    ranks = range(1, len(found.ranking) + 1)
    colours = [_RED if row[:2] in chosen else _GREY for row in found.ranking]
    axes.scatter(ranks, [row[2] for row in found.ranking], c=colours, s=12)
    axes.set(xlabel="rank", ylabel="score", xscale="log", title="scores; red: chosen")


def _plot_curve(axes: Any, curve: list[dict[str, Any]], chosen: int) -> None:
    k = [point["k"] for point in curve]
    for name, colour in (("outliers_left", _RED), ("drift", _GREY)):
        axes.plot(k, [point[name] for point in curve], marker="o", color=colour, label=name)
    axes.axvline(chosen, color="0.3", linewidth=0.8, linestyle=":")
    axes.set(xlabel="neurons moved", title="held-out images", xscale="log", ylim=(-0.03, None))
    axes.legend(frameon=False)


def plot_outliers(report: Any, path: Path) -> None:
    """Largest and median norm by layer, after attention and after the MLP (2506.08010, Fig. 2)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    layers = [row.layer for row in report.layers]
    for name, colour in (("max", _RED), ("median", _GREY)):
        for stage, style in (("after_attention", "--"), ("after_mlp", "-")):
            values = [getattr(row, f"{name}_{stage}") for row in report.layers]
            label = f"{name} {stage.replace('_', ' ')}"
            axes.plot(layers, values, style, color=colour, label=label)
    if report.threshold is not None:
        axes.axhline(report.threshold, color="0.3", linewidth=0.8, linestyle=":")
    axes.set(xlabel="layer", ylabel="norm", yscale="log", title=report.model)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path)
