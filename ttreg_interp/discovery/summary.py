"""The evidence of an artefact in a few lines of text."""

from typing import Any


def summarised(evidence: dict[str, Any]) -> list[str]:
    """One line for each kind of evidence there is."""
    lines = []
    if outcome := evidence.get("outcome"):
        lines.append(
            f"held-out images, neurons moved to a register: {outcome['outliers_left']:.1%} of the "
            f"outliers left, output changed by {outcome['drift']:.3f} (1 - cosine)"
        )
    arms = evidence.get("held_out", {}).get("arms", {})
    if "outliers_left" in arms.get("random neurons", {}):
        left, zeroed = arms["random neurons"]["outliers_left"], arms["zeroed"]["drift"]
        lines.append(
            f"controls: random neurons leave {left['estimate']:.1%} of the outliers; zeroing instead "
            f"of moving changes the output by {_estimate(zeroed):.3f}"
        )
    if alone := [row["shrinkage"] for row in evidence.get("single", ()) if "shrinkage" in row]:
        shares = ", ".join(f"{_estimate(shrinkage):.1%}" for shrinkage in alone)
        lines.append(f"moved alone, they shrink the outliers by {shares}")
    if rows := evidence.get("stability"):
        least = min(row["stays"] for row in rows)
        lines.append(
            f"resampled images: every neuron stays among the best in {'at least ' * (least < 1)}{least:.0%}"
        )
    for name, found in evidence.get("published", {}).items():
        lines.append(
            f"published list {name}: {found['shared']} of its "
            f"{found['shared'] + found['only_second']} neurons are here"
        )
    return lines


def _estimate(value: Any) -> float:
    """An interval's estimate; a single image has none around it."""
    return value["estimate"] if isinstance(value, dict) else value
