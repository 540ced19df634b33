"""Where in the plane of alignment and strength attention is a no-op.

Paper and place: arXiv 2506.08010, Proposition 1, which asks for a small angle between tokens and sink.
Question: is a small angle needed, or only a positive dot product and enough strength?
Command: python -m analyses.theory.phase --out runs/theory/phase
Runtime: about 15 s on one CPU core.
Expect: no-op exactly where the alignment is positive and the strength beyond the predicted onset,
at any angle below 90 degrees; none at negative alignment, whatever the strength.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from analyses._figures import PAGE, RED
from analyses._run import Findings, main
from analyses.theory import _common as common
from ttreg_interp.metrics.intervals import Interval, mean_interval
from ttreg_interp.theory.assumptions import Assumptions, Setting, draw
from ttreg_interp.theory.noop import CLS, Form, NoOpModel

FORMS: tuple[Form, Form] = ("token", "gain")


@dataclass(frozen=True)
class Config:
    """Phase diagram of the closed-form model."""

    out: Path
    """Folder for result.json, summary.md and the figure."""
    draws: int = 8
    """Random models behind every cell."""
    levels: int = 24
    """Alignments of either sign."""
    columns: int = 48
    """Strengths."""
    weakest: float = 1.0
    """Smallest strength."""
    strongest: float = 300.0
    """Largest strength."""

    @property
    def strengths(self) -> torch.Tensor:
        """The strengths, at equal ratios."""
        return common.log_strengths(self.weakest, self.strongest, self.columns)

    @property
    def alignments(self) -> list[float]:
        """The alignments, zero left out."""
        positive = torch.linspace(0.02, 1, self.levels).tolist()
        return [-a for a in reversed(positive)] + positive


def model_at(alignment: float, form: Form, seed: int) -> NoOpModel:
    """A random model whose tokens lean towards the sink by so much, or away from it."""
    keep = Assumptions(aligned=alignment > 0)
    return draw(
        Setting(form=form, alignment=abs(alignment), tokens=16, assumptions=keep), seed=seed
    )


def scan(config: Config, form: Form, seed: int) -> dict[str, torch.Tensor]:
    """Relative error, attention on the sink and onset, for every alignment and strength."""
    rows = [model_at(alignment, form, seed) for alignment in config.alignments]
    runs = [model.run(config.strengths) for model in rows]
    idle = [model.read(run.x1[:, CLS]).norm(dim=-1) for model, run in zip(rows, runs, strict=True)]
    cosine = [torch.cosine_similarity(run.x1[-1, CLS], run.x1[-1, -1], dim=0) for run in runs]
    return {
        "error": torch.stack(
            [m.error(config.strengths) / i for m, i in zip(rows, idle, strict=True)]
        ),
        "held": torch.stack([run.pattern[:, 0, CLS, -1] for run in runs]),
        "onset": torch.cat([model.onset() for model in rows]),
        "angle": torch.stack(cosine).acos() * 180 / math.pi,
    }


def measure(config: Config, scans: dict[str, list[dict[str, torch.Tensor]]]) -> dict[str, Interval]:
    """How well the onset tells where the sink rules, and what is left at negative alignment."""
    numbers = {}
    for form, draws in scans.items():
        agree, left, angles = [], [], []
        for one in draws:
            predicted = config.strengths[None] > one["onset"][:, None]
            agree.append(float(((one["held"] > 0.5) == predicted).double().mean()))
            left.append(float(one["error"][: config.levels, -1].median()))
            angles.append(float(one["angle"][one["error"][:, -1] < 1e-3].max()))
        numbers[f"{form}_cells_where_onset_predicts_the_sink"] = mean_interval(agree)
        numbers[f"{form}_relative_error_at_negative_alignment"] = mean_interval(left)
        numbers[f"{form}_largest_angle_with_a_noop"] = mean_interval(angles)
    return numbers


def plot(config: Config, scans: dict[str, list[dict[str, torch.Tensor]]]) -> Figure:
    """Median relative error over the draws, with the predicted onset."""
    figure = Figure(figsize=(PAGE, 2.4), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    xlabels = {"token": r"strength $\beta$", "gain": r"gain $\|u_2\|$"}
    for axis, form in zip(axes, FORMS, strict=True):
        error = torch.stack([one["error"] for one in scans[form]]).median(0).values
        onset = torch.stack([one["onset"] for one in scans[form]]).median(0).values
        axis.pcolormesh(config.strengths, config.alignments, error.clamp(1e-6, 1), shading="nearest",
                               norm=LogNorm(1e-6, 1), cmap="cividis", rasterized=True)  # fmt: skip
        seen = onset <= config.strongest
        axis.plot(
            onset[seen],
            torch.tensor(config.alignments)[seen],
            "--",
            color=RED,
            lw=1.2,
            label="predicted onset",
        )
        axis.axhline(0, color="white", lw=0.6)
        axis.set(
            xscale="log",
            xlabel=xlabels[form],
            title=f"{form} form",
            xlim=(config.weakest, config.strongest),
        )
        axis.annotate("anti-sink", (2, -0.6), color="black", fontsize=6)
    axes[0].set_ylabel("alignment of the other tokens")
    axes[0].legend(loc="lower right")
    figure.colorbar(
        axes[0].collections[0], ax=axes, label="relative change of the output", extend="min"
    )
    return figure


def analyse(config: Config) -> Findings:
    scans = {form: [scan(config, form, seed) for seed in range(config.draws)] for form in FORMS}
    numbers = measure(config, scans)
    words = (
        "Attention becomes a no-op wherever the other tokens have a positive dot product with the sink and the strength "
        "is beyond the predicted onset. The onset tells which cells of the diagram have a sink (more than half of "
        f"[CLS]'s attention): share of cells {numbers['token_cells_where_onset_predicts_the_sink']} in the token form, "
        f"{numbers['gain_cells_where_onset_predicts_the_sink']} in the gain form. A small angle is not needed: at the "
        f"largest strength the error is below 0.001 up to angles of {numbers['token_largest_angle_with_a_noop']} and "
        f"{numbers['gain_largest_angle_with_a_noop']} degrees between [CLS] and the sink. At negative alignment no "
        f"strength helps: the relative error is still {numbers['token_relative_error_at_negative_alignment']} and "
        f"{numbers['gain_relative_error_at_negative_alignment']}. Intervals: 95 %, {config.draws} random models."
    )
    headline = f"onset tells the sink in {numbers['token_cells_where_onset_predicts_the_sink']} of the cells (token), {numbers['gain_cells_where_onset_predicts_the_sink']} (gain)"
    return Findings(headline, words, numbers, {"figure": plot(config, scans)})


if __name__ == "__main__":
    main(globals())
