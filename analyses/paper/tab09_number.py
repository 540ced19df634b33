"""How many registers: what each number does to outliers and output.

Paper and place: arXiv 2506.08010, Table 9 and author response (LOST by number of registers).
Question: is one register enough, and do more cost anything?
Command: python -m analyses.paper.tab09_number --out OUT
Runtime: about 15 s on one CPU core.
Expect: on the planted ViT no outlier is left with any number, and the output changes by less than 0.1.
In the paper: NYUd rmse .3876, .3774, .3771, .3785, .3791, .3795 for 0 to 5; LOST (VOC07) 53.8, 53.9,
52.8, 51.9, 50.5 for 1 to 5. Depth and corloc are the evaluations' matter; here it is the mechanism.
"""

from dataclasses import dataclass

from analyses._bench import BenchConfig
from analyses._figures import COLUMN, curve, panels
from analyses._run import Findings, main
from ttreg_interp.interventions import ExtraTokens, TestTimeRegister
from ttreg_interp.metrics.arm_metrics import (
    KL,
    Cosine,
    OutlierCount,
    RegisterAttention,
    RelativeChange,
    Top1,
)
from ttreg_interp.metrics.compare import compare


@dataclass(frozen=True)
class Config(BenchConfig):
    """Zero to so many registers."""

    most: int = 5
    """Registers at most."""


def analyse(config: Config) -> Findings:
    """A table by number of registers."""
    bench = config.bench
    outliers = OutlierCount(layer=bench.outliers.detect_layer, threshold=bench.threshold)
    attention = RegisterAttention(layer=bench.last)
    metrics = [outliers, attention, RelativeChange(), Cosine()]
    if bench.model.parts.is_classifier:
        metrics += [KL(), *([] if bench.labels is None else [Top1()])]
    arms = {str(n): TestTimeRegister(bench.neurons, n) for n in range(1, config.most + 1)}
    arms |= {f"{n}, nothing moved": ExtraTokens(n) for n in (1, config.most)}
    table = compare(
        bench.model, bench.pixels, arms, metrics, config.batch_size, bench.labels, config.seed
    )
    rows = {name: table[name, "relative change"].value for name in arms}
    figure, axes = panels(1, 1, 1.9, COLUMN)
    counts = range(1, config.most + 1)
    curve(axes[0, 0], [rows[str(n)] for n in counts], counts, 0, "change of the output")
    on = [table[str(n), attention.name].value for n in counts]
    curve(axes[0, 0], on, counts, 1, "attention on registers")
    axes[0, 0].set(xlabel="registers", xticks=list(counts), ylim=(0, None))
    axes[0, 0].legend()
    before = table["intact", outliers.name].value
    headline = (
        f"outliers an image {before} before, {table['1', outliers.name].value} with 1, "
        f"{table[str(config.most), outliers.name].value} with {config.most}; change of the output "
        f"{rows['1']} and {rows[str(config.most)]}"
    )
    words = (
        f"{headline[0].upper()}{headline[1:]}. Tokens to which nothing is moved: {rows['1, nothing moved']} "
        f"(one), {rows[f'{config.most}, nothing moved']} ({config.most}).\n\n{table}"
    )
    return Findings(headline, words, table.to_dict(), {"figure": figure}, bench.facts)


if __name__ == "__main__":
    main(globals())
