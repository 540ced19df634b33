"""The register draws attention as the outliers did.

Paper and place: arXiv 2506.08010, author response.
Question: what share of its attention does [CLS] give to the register, and to the median other token, in
every block; and what did the outliers get before?
Command: python -m analyses.paper.reb_attention --out OUT
Runtime: about 5 s on one CPU core.
Expect: on the planted ViT over 0.9 in the last block, as the outliers before; an added token to which
nothing is moved gets no more than a patch.
In the paper: .1657 on the register, median other token .0006, in the last layer.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from analyses._bench import Bench, BenchConfig
from analyses._figures import by_layer, curve, panels
from analyses._run import Findings, main
from ttreg_interp.interventions import Empty, ExtraTokens, Intervention, TestTimeRegister
from ttreg_interp.metrics.intervals import mean_interval
from ttreg_interp.metrics.trace import trace


@dataclass(frozen=True)
class Config(BenchConfig):
    """Attention rows of [CLS], mean over heads."""


def attention(bench: Bench, arm: Intervention) -> Float[Tensor, "layer image token"]:
    """Of [CLS], in every block."""
    with bench.model.intervened(arm):
        runs = [trace(bench.model, batch) for batch in bench.pixels.split(bench.batch_size)]
    return torch.cat([run.attention.mean(dim=2) for run in runs], dim=1)


def analyse(config: Config) -> Findings:
    """Register, outliers before, an empty token, and the median patch."""
    bench = config.bench
    register, empty = TestTimeRegister(bench.neurons), ExtraTokens()
    after, control, before = (attention(bench, arm) for arm in (register, empty, Empty()))
    row, patches = bench.layout(register).test_time_registers.start, bench.layout(register).patches
    outliers = (before[..., bench.layout().patches] * bench.is_outlier).sum(dim=-1)
    curves = {
        "register": after[..., row],
        "outliers, before": outliers,
        "token to which nothing is moved": control[..., row],
        "median patch, after": after[..., patches].median(dim=-1).values,
    }
    numbers = {
        name: [mean_interval(layer, config.seed) for layer in values]
        for name, values in curves.items()
    }
    figure, axes = panels(1, 1, 2.2, 4.2)
    for place, (name, values) in enumerate(numbers.items()):
        curve(axes[0, 0], values, range(len(values)), place, name)
    axes[0, 0].set(ylabel="attention of [CLS]", ylim=(-0.02, 1.02))
    by_layer(axes[0, 0])
    axes[0, 0].legend()
    last = {name: values[-1] for name, values in numbers.items()}
    headline = (
        f"last block: register {last['register']}, median patch {last['median patch, after']}; "
        f"outliers before {last['outliers, before']}"
    )
    words = (
        f"In the last block [CLS] gives {last['register']} of its attention to the register, "
        f"{last['median patch, after']} to the median patch; before, the outliers of an image together had "
        f"{last['outliers, before']}. A token to which nothing is moved gets "
        f"{last['token to which nothing is moved']} ({len(bench.pixels)} images, mean over heads)."
    )
    return Findings(headline, words, numbers, {"figure": figure}, bench.facts)


if __name__ == "__main__":
    main(globals())
