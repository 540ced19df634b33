"""k' and v' in place of the sink, beside a register and the sink's removal.

Paper and place: arXiv 2402.17762, section 4.3 (k', v'); arXiv 2506.08010, A.2 (training-free).
Question: with the register neurons zeroed, does a key and value that no token carries do what the sink did?
Command: python -m analyses.llm.bias --out OUT
Runtime: 20 s on one CPU core for the planted model.
Expect: planted: zeroing the neurons or cutting attention to the first token raises the loss by a tenth
of a nat or more; a register keeps most of it, and so does the bias; random neurons do nothing;
stories260K: no register neurons, which it says.
In the paper: GPT-2 trained with k', v': loss 3.04 as without, and no massive activations.
"""

from dataclasses import dataclass

from analyses._run import Findings, main
from analyses.llm._bench import Bench, Losses, TextConfig
from ttreg_interp.errors import DataError
from ttreg_interp.interventions import (
    Empty,
    ExtraTokens,
    Intervention,
    KnockoutAttention,
    TestTimeRegister,
    ZeroNeurons,
    mean_attention_bias,
)


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """One language model on some texts."""


def arms(bench: Bench) -> dict[str, Intervention]:
    """What is compared."""
    neurons = bench.found.neurons
    if not len(neurons):
        raise DataError(str(bench.found))
    register, zeroed = TestTimeRegister(neurons), ZeroNeurons(neurons)
    random = neurons.matched_random(bench.config.seed, bench.model.cfg.d_mlp)
    return {
        "intact": Empty(),
        "neurons zeroed": zeroed,
        "sink cut": KnockoutAttention("text", "bos"),
        "register": register,
        "k', v' of the register": zeroed
        + mean_attention_bias(bench.model, register, bench.ids.split(8)),
        "control: empty token, zeroed": zeroed + ExtraTokens(),
        "control: random neurons zeroed": ZeroNeurons(random),
    }


def analyse(config: Config) -> Findings:
    """Loss of every arm."""
    bench = Bench.of(config)
    losses = Losses.of(bench, arms(bench))
    rise = losses.rise
    bias = rise["k', v' of the register"]
    return Findings(
        headline=(
            f"loss {rise['neurons zeroed']:+.3f} zeroed, {rise['register']:+.3f} register, {bias:+.3f} bias"
        ),
        words=f"{bench.found}\n\n{losses.table()}",
        numbers=losses.numbers() | {"neurons": bench.found.to_dict()},
        figures={"figure": losses.figure(height=1.6)},
        facts=bench.facts(),
    )


if __name__ == "__main__":
    main(globals())
