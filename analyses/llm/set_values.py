"""Massive activations set to zero, and to their mean.

Paper and place: arXiv 2402.17762, section 3.2 and Table 3: interventions where they appear.
Question: do massive activations matter by their size, or by being the same everywhere?
Command: python -m analyses.llm.set_values --out OUT
Runtime: 5 s on one CPU core for the planted model.
Expect: planted: zero raises the loss by a tenth of a nat or more, the mean leaves it as it was, other
dimensions set to zero on the same token do little; stories260K: nothing to set, which it says.
In the paper: LLaMA2-7B: perplexity 5.47; zero: infinite; mean: 5.47.
"""

from dataclasses import dataclass

import torch

from analyses._run import Findings, main
from analyses.llm._bench import Bench, Losses, TextConfig
from ttreg_interp.errors import DataError
from ttreg_interp.interventions import Empty, Intervention, SetMassiveActivations
from ttreg_interp.metrics.massive_activations import massive_activations


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """One language model on some texts."""


def arms(bench: Bench) -> dict[str, Intervention]:
    """Interventions after the block that writes the massive activations of the first token."""
    found = massive_activations(bench.model, bench.ids)
    if found.step_up is None:
        raise DataError(f"Nothing to set. {found.summary()}")
    means = {e.dim: e.value for e in found.at(found.step_up) if e.where == "first"}
    if not means:
        raise DataError(f"None of them is on the first token. {found.summary()}")
    generator = torch.Generator().manual_seed(bench.config.seed)
    drawn = torch.randperm(bench.model.cfg.d_model, generator=generator).tolist()
    others = [dim for dim in drawn if dim not in found.dims][: len(means)]
    dims, values, zeros = tuple(means), tuple(means.values()), (0.0,) * len(means)
    return {
        "intact": Empty(),
        "zero": SetMassiveActivations(found.step_up, dims, zeros, "bos"),
        "mean": SetMassiveActivations(found.step_up, dims, values, "bos"),
        "control: other dimensions zero": SetMassiveActivations(
            found.step_up, tuple(others), zeros, "bos"
        ),
    }


def analyse(config: Config) -> Findings:
    """Loss of every arm."""
    bench = Bench.of(config)
    losses = Losses.of(bench, arms(bench))
    rise = losses.rise
    return Findings(
        headline=f"loss {rise['zero']:+.3f} with zero, {rise['mean']:+.3f} with the mean",
        words=losses.table(),
        numbers=losses.numbers(),
        figures={"figure": losses.figure(height=1.2)},
        facts=bench.facts(),
    )


if __name__ == "__main__":
    main(globals())
