"""Which heads have an attention sink.

Paper and place: arXiv 2410.10781, section 3: the sink rate, with its epsilon and length.
Question: what share of the heads attends to the first token, and in which layers?
Command: python -m analyses.llm.sink_rate --out OUT
Runtime: 5 s on one CPU core for the planted model.
Expect: planted: the 12 heads of 24 that were made to, rate .5, their values at the sink drained to
below .05 of the others'; stories260K: none (mean attention near the .074 of evenly spread attention).
In the paper: epsilon .3, 64 tokens: LLaMA3-8B .990, Mistral-7B .975, LLaMA2-7B .925.
"""

from dataclasses import dataclass

import torch

from analyses._figures import COLUMN, panels
from analyses._run import Findings, main
from analyses.llm._bench import Bench, TextConfig
from ttreg_interp.metrics.sinks import attention_sinks


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """One language model on some texts."""

    epsilon: float = 0.3
    """Attention above which the first token is a sink of a head."""


def analyse(config: Config) -> Findings:
    """Attention on the first token, head by head."""
    bench = Bench.of(config)
    found = attention_sinks(bench.model, bench.ids, epsilon=config.epsilon, seed=config.seed)
    n_heads = bench.model.cfg.n_heads
    attention = torch.tensor([row.attention.estimate for row in found.heads]).view(-1, n_heads)
    figure, ((axes,),) = panels(1, 1, width=COLUMN)
    picture = axes.imshow(attention.numpy(), vmin=0, vmax=1, aspect="auto", origin="lower")
    axes.set(xlabel="head", ylabel="block")
    figure.colorbar(picture, label="attention on the first token")
    setting = f"epsilon {config.epsilon:g}, {found.rate.tokens} tokens"
    return Findings(
        headline=f"sink rate {found.at_key:.3f} ({setting})",
        words=f"```\n{found}\n```",
        numbers=found.to_dict(),
        figures={"figure": figure},
        facts=bench.facts(),
    )


if __name__ == "__main__":
    main(globals())
