"""What a sink needs when a norm stands before attention.

Paper and place: arXiv 2506.08010, section 6 leaves the norms out; this puts them back.
Question: can an outlier still make attention a no-op under RMSNorm or LayerNorm, and how fast?
Command: python -m analyses.theory.norms --out runs/theory/norms
Runtime: about 15 s on one CPU core.
Expect: identity Q and K never give the sink more than half; with key gain and value drain the error
falls as 1 / outlier norm, with a register as exp(-c kappa) at any norm; without the drain it stays.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses._figures import BLUE, GREEN, GREY, ORANGE, PAGE, PURPLE, RED
from analyses._run import Findings, main
from analyses.theory import _common as common
from ttreg_interp.metrics.intervals import Interval, mean_interval
from ttreg_interp.theory.noop import CLS, Neuron, NoOpModel
from ttreg_interp.theory.noop_norm import (
    NormSetting,
    draw_normed,
    rate_in_key_gain,
    read_at_scales_of,
)
from ttreg_interp.theory.parts import normalise

IDENTITY = {"key_gain": 0.0, "query_bias": 0.0}
LARGE = 40.0


@dataclass(frozen=True)
class Config:
    """The closed-form model with norms."""

    out: Path
    """Folder for result.json, summary.md and the figure."""
    norm: Literal["rms", "layer"] = "layer"
    """Which norm stands before attention, MLPs and head."""
    draws: int = 50
    """Random models behind every number."""
    tokens: int = 8
    """Tokens of each model, sink included."""


def error_at_clean_scales(model: NoOpModel, at: torch.Tensor) -> torch.Tensor:
    """The error with every later norm held at the scale it has without attention."""
    x1 = model.first_block(at)
    update = model.attention(normalise(x1, model.norm))[0]
    return (read_at_scales_of(model, x1 + update, x1) - model.read(x1))[:, CLS].norm(dim=-1)


def decades(errors: torch.Tensor) -> float:
    """By how many decades the error falls from the first to the second strength."""
    return float((errors[0] / errors[1]).log10())


def register_slope_over_rate(setting: NormSetting, seed: int) -> float:
    """Slope of the register's log error in the key gain, over the predicted rate."""
    rate = rate_in_key_gain(draw_normed(setting, seed=seed))
    gains = torch.tensor([20.0, 26.0]) / rate
    at = torch.ones(1, dtype=torch.float64)
    errors = [
        draw_normed(replace(setting, key_gain=float(gain)), seed=seed).error(at, "register")
        for gain in gains
    ]
    return common.log_slope(torch.cat(errors), gains) / -rate


def measure(config: Config) -> dict[str, Interval]:
    """Sink weight of identity maps, rates, and what is left without one of the two needs."""
    base = NormSetting(norm=config.norm, tokens=config.tokens)
    at = torch.tensor([1e5, 1e6], dtype=torch.float64)

    def models(**values) -> list[NoOpModel]:
        return [draw_normed(replace(base, **values), seed=seed) for seed in range(config.draws)]

    undrained = models(key_gain=LARGE, drain=0.0)
    leaning = models(**IDENTITY, alignment=2.0)
    return {
        "identity_attention_on_the_sink": mean_interval(
            [float(m.run(at).pattern[1, 0, CLS, -1]) for m in leaning]
        ),
        "no_key_gain_error": mean_interval([float(m.error(at)[1]) for m in models(**IDENTITY)]),
        "gain_and_drain_decades_per_decade": mean_interval(
            [decades(m.error(at)) for m in models(key_gain=LARGE)]
        ),
        "no_drain_error": mean_interval([float(m.error(at)[1]) for m in undrained]),
        "no_drain_at_clean_scales_decades_per_decade": mean_interval(
            [decades(error_at_clean_scales(m, at)) for m in undrained]
        ),
        "register_slope_over_minus_c": mean_interval(
            [
                register_slope_over_rate(replace(base, alignment=0.0), seed)
                for seed in range(config.draws)
            ]
        ),
    }


def plot(config: Config) -> Figure:
    """Attention on the sink, errors over the outlier norm, and the register's error over the key gain."""
    figure = Figure(figsize=(PAGE, 2.2), layout="constrained")
    base = NormSetting(norm=config.norm, tokens=config.tokens)
    axes = figure.subplots(1, 3)
    plot_attention(axes[0], base)
    plot_errors(axes[1], base)
    plot_key_gain(axes[2], replace(base, alignment=0.0))
    axes[0].legend(loc="center right", bbox_to_anchor=(1, 0.28))
    for axis in axes[1:]:
        axis.legend(loc="lower left")
    return figure


def plot_attention(axis: Axes, base: NormSetting) -> None:
    """More outlier norm does not help; more key gain does."""
    at = common.log_strengths(1, 1e4, 60)
    gains = ((0.0, GREY), (3.0, ORANGE), (6.0, GREEN), (12.0, BLUE))
    for gain, color in gains:
        bias = base.query_bias if gain else 0.0
        model = draw_normed(replace(base, key_gain=gain, query_bias=bias))
        label = rf"$\kappa={gain:g}$" if gain else "identity"
        axis.semilogx(at, model.run(at).pattern[:, 0, CLS, -1], color=color, label=label)
    axis.axhline(0.5, color="k", ls=":", lw=0.8, label="identity, bound")
    axis.set(title="(a) attention on the sink", xlabel=r"gain $\|u_2\|$", ylim=(-0.02, 1.05))


def plot_errors(axis: Axes, base: NormSetting) -> None:
    """Both needs, either of them alone, and the register."""
    at = common.log_strengths(1, 1e6, 60)
    both = draw_normed(replace(base, key_gain=LARGE))
    undrained = draw_normed(replace(base, key_gain=LARGE, drain=0.0))
    curves = (
        ("drain only", draw_normed(replace(base, **IDENTITY)).error(at), GREY, "-"),
        ("key gain only", undrained.error(at), RED, "--"),
        ("same, clean scales", error_at_clean_scales(undrained, at), ORANGE, "-"),
        ("both", both.error(at), BLUE, "-"),
        (r"predicted $\propto 1/\|u_2\|$", both.saturated_error(at), "k", "--"),
    )
    for label, error, color, line in curves:
        axis.loglog(at, error, color=color, ls=line, lw=0.8 if color == "k" else 1.2, label=label)
    axis.set(
        title=r"(b) error, $\kappa=40$",
        xlabel=r"gain $\|u_2\|$",
        ylabel="change of the output by attention",
    )


def plot_key_gain(axis: Axes, base: NormSetting) -> None:
    """The register's error is exponential in the key gain; the outlier's is held up by its content."""
    gains = torch.linspace(0.5, 40, 60).tolist()
    models = [draw_normed(replace(base, key_gain=gain)) for gain in gains]
    arms: tuple[tuple[Neuron, float, str], ...] = (
        ("register", 1.0, GREEN),
        ("intact", 1e3, BLUE),
        ("intact", 1e6, PURPLE),
    )
    for neuron, strength, color in arms:
        at = torch.tensor([strength], dtype=torch.float64)
        label = (
            "register"
            if neuron == "register"
            else rf"outlier, $\|u_2\|=10^{math.log10(strength):.0f}$"
        )
        axis.semilogy(gains, [float(m.error(at, neuron)) for m in models], color=color, label=label)
    one = torch.ones(1, dtype=torch.float64)
    axis.semilogy(
        gains,
        [float(m.leading_error(one, "register")) for m in models],
        "k--",
        lw=0.8,
        label="predicted",
    )
    axis.set(title="(c) error over the key gain", xlabel=r"key gain $\kappa$")


def analyse(config: Config) -> Findings:
    numbers = measure(config)
    words = (
        f"Under {config.norm} norm an outlier alone makes no sink: with identity Q and K, even if every token leans "
        f"strongly towards it, it holds {numbers['identity_attention_on_the_sink']} of [CLS]'s attention at norm 1e6 "
        f"(bound: one half). With key gain and value drain the error falls by "
        f"{numbers['gain_and_drain_decades_per_decade']} decades per decade of outlier norm, because a norm shrinks the "
        f"sink's own content. Without the drain {numbers['no_drain_error']} of error stays; it is all in the scales of "
        f"the next norms: held at their clean values, the error falls by "
        f"{numbers['no_drain_at_clean_scales_decades_per_decade']} decades per decade. Without key gain "
        f"{numbers['no_key_gain_error']} stays. A register is empty, so its error does not depend on the outlier norm "
        f"and falls exponentially in the key gain, slope over -c {numbers['register_slope_over_minus_c']}. "
        f"Intervals: 95 %, {config.draws} random models."
    )
    headline = f"with both needs {numbers['gain_and_drain_decades_per_decade']} decades per decade; register's slope over -c {numbers['register_slope_over_minus_c']}"
    return Findings(headline, words, numbers, {"figure": plot(config)})


if __name__ == "__main__":
    main(globals())
