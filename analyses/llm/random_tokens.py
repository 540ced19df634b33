"""Prompts of random tokens.

Paper and place: arXiv 2410.10781, section 3.2: the sink on random tokens, and on repeated ones.
Question: do sink and massive activation need a text, or the first token only?
Command: python -m analyses.llm.random_tokens --out OUT
Runtime: 5 s on one CPU core for the planted model.
Expect: planted: the same sink rate and massive activations on its own texts and on random tokens behind
BOS, none where BOS is left out; stories260K: none on texts, .03 on random tokens.
In the paper: sink rates of 70 to 91 % on random tokens; on one repeated token none with rotary positions.
"""

from dataclasses import dataclass

from analyses._figures import COLUMN, panels
from analyses._run import Findings, main
from analyses.llm._bench import Bench, TextConfig, markdown, random_ids
from ttreg_interp.metrics.massive_activations import massive_activations
from ttreg_interp.metrics.sinks import attention_sinks


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """One language model on some texts."""


def analyse(config: Config) -> Findings:
    """Sink rate and massive activations of every kind of prompt."""
    bench = Bench.of(config)
    drawn = random_ids(bench)
    prompts = {
        "texts": bench.ids,
        "random tokens": drawn,
        "random tokens, no BOS": drawn[:, 1:],
        "one token repeated": drawn[:, 1:2].expand_as(drawn),
    }
    numbers = {}
    for name, ids in prompts.items():
        sinks = attention_sinks(bench.model, ids, seed=config.seed)
        massive = massive_activations(bench.model, ids)
        numbers[name] = {
            "sink_rate": sinks.at_key,
            "peak": max(layer.peak for layer in sinks.layers),
            "largest": max(layer.top[0] for layer in massive.layers),
            "massive_dims": list(massive.dims),
        }
    figure, ((axes,),) = panels(1, 1, height=1.4, width=COLUMN)
    axes.barh(list(numbers), [row["sink_rate"] for row in numbers.values()])
    axes.invert_yaxis()
    axes.set_xlabel(f"sink rate (epsilon .3, {bench.ids.shape[1]} tokens)")
    rows = [
        (name, f"{row['sink_rate']:.3f}", f"{row['peak']:.3g}", f"{row['largest']:.4g}")
        for name, row in numbers.items()
    ]
    texts, random = numbers["texts"]["sink_rate"], numbers["random tokens"]["sink_rate"]
    return Findings(
        headline=f"sink rate {texts:.3f} on texts, {random:.3f} on random tokens",
        words=markdown(("prompt", "sink rate", "residual peak", "largest entry"), rows),
        numbers=numbers,
        figures={"figure": figure},
        facts=bench.facts(),
    )


if __name__ == "__main__":
    main(globals())
