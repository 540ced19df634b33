"""What becomes of the no-op when one assumption is dropped.

Paper and place: arXiv 2506.08010, appendix A.1, the assumptions before Proposition 1.
Question: is each assumption needed, and is the failure the predicted one?
Command: python -m analyses.theory.assumptions --out runs/theory/assumptions
Runtime: about 10 s on one CPU core.
Expect: measured over predicted error 1.000 in all twelve panels; growth exponent 1 (the sink leaks
in proportion to its strength) or 0 (it leaks, or is ignored, at constant size).
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure

from analyses._figures import BLUE, PAGE, RED
from analyses._run import Findings, main
from analyses.theory import _common as common
from ttreg_interp.metrics.intervals import Interval, mean_interval
from ttreg_interp.theory.assumptions import Assumptions, Setting, draw
from ttreg_interp.theory.noop import CLS, NoOpModel

KERNEL = ("mlp_blind_to_u1", "mlp_blind_to_u2", "head_blind_to_u1", "head_blind_to_u2")
NAMES = tuple(field.name for field in fields(Assumptions))
Predicted = Callable[[NoOpModel, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Config:
    """The closed-form model without one assumption at a time."""

    out: Path
    """Folder for result.json, summary.md and the figure."""
    draws: int = 20
    """Random models behind every number."""
    strongest: float = 1000.0
    """Largest strength, where the numbers are taken."""


def setting_without(name: str) -> Setting:
    """The default model without one assumption; two generic heads where heads are the matter."""
    # Generic wide maps have no kernel, so that without the projection nothing is blind.
    dropped = (name, *KERNEL) if name == "rank_deficient" else (name,)
    keep = Assumptions(**dict.fromkeys(dropped, False))
    if name == "every_head_aligned":
        return Setting(heads=2, attention="generic", assumptions=keep)
    return Setting(assumptions=keep)


def predicted(name: str) -> Predicted:
    """What the error should tend to."""
    if name == "aligned":
        return attention_to_others
    if name == "every_head_aligned":
        return lambda model, at: attention_to_others(only_head(model, 0), at)
    key = 1 if name == "sink_fires_hardest" else -1
    return lambda model, at: model.saturated_error(at, key=key)


def attention_to_others(model: NoOpModel, at: torch.Tensor) -> torch.Tensor:
    """The error if the sink were not there."""
    x1 = model.first_block(at)
    return (model.finish(x1[:, :-1]).output[:, CLS] - model.read(x1[:, CLS])).norm(dim=-1)


def only_head(model: NoOpModel, head: int) -> NoOpModel:
    """The model with one of its heads."""
    maps = {
        name: getattr(model.attention, name)[[head]] for name in ("w_q", "w_k", "w_v", "w_o", "b_q")
    }
    return replace(model, attention=replace(model.attention, **maps))


def measure(config: Config) -> dict[str, Interval]:
    """Measured over predicted error at the largest strength, and the exponent of its growth."""
    at = torch.tensor([0.1 * config.strongest, config.strongest], dtype=torch.float64)
    numbers = {}
    for name in NAMES:
        models = [draw(setting_without(name), seed=seed) for seed in range(config.draws)]
        # A leak may turn [CLS] away from the sink; that is another failure, and has its own panel.
        meant = [
            m for m in models if name in ("aligned", "every_head_aligned") or m.rate().min() > 0
        ]
        ratios = [float((m.error(at) / predicted(name)(m, at))[1]) for m in meant]
        growth = [float((m.error(at)[1] / m.error(at)[0]).log10()) for m in meant]
        numbers[f"{name}_error_over_predicted"] = mean_interval(ratios)
        numbers[f"{name}_growth_exponent"] = mean_interval(growth)
    return numbers


def plot(config: Config) -> Figure:
    """One panel an assumption: kept, dropped, predicted."""
    figure = Figure(figsize=(PAGE, 4.6), layout="constrained")
    axes = figure.subplots(3, 4, sharex=True, sharey=True).flatten()
    at = common.log_strengths(0.3, config.strongest, 80)
    for axis, name in zip(axes, NAMES, strict=True):
        setting = setting_without(name)
        kept, dropped = draw(replace(setting, assumptions=Assumptions())), draw(setting)
        axis.loglog(at, kept.error(at), color=BLUE, label="kept")
        axis.loglog(at, dropped.error(at), color=RED, label="dropped")
        axis.loglog(at, predicted(name)(dropped, at), "k--", lw=0.8, label="predicted")
        axis.set(title=name.replace("_", " "), ylim=(1e-10, 1e5))
    axes[0].legend(loc="lower left")
    figure.supxlabel(r"strength $\beta$", fontsize=7)
    figure.supylabel("change of the output by attention", fontsize=7)
    return figure


def analyse(config: Config) -> Findings:
    numbers = measure(config)
    worst = max(abs(numbers[f"{name}_error_over_predicted"].estimate - 1) for name in NAMES)
    growing = [name for name in NAMES if numbers[f"{name}_growth_exponent"].estimate > 0.5]
    words = (
        "Dropping any one of the twelve assumptions breaks the no-op in the predicted way: the mean ratio of measured to "
        f"predicted error at beta = {config.strongest:g} is 1 to within {worst:.1e} in every case ({config.draws} random "
        "models each; intervals in result.json). The error grows in proportion to beta without "
        f"{', '.join(growing)}; without the others it stays at a constant size."
    )
    headline = f"measured over predicted error 1 to within {worst:.1e} in all {len(NAMES)} cases"
    return Findings(headline, words, numbers, {"figure": plot(config)})


if __name__ == "__main__":
    main(globals())
