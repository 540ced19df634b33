"""How many registers: depth read off the patches.

Paper and place: arXiv 2506.08010, Table 9.
Question: does a depth probe gain from a second register, or a third?
Command: python -m analyses.paper.tab09_depth --out OUT
Runtime: about 40 s on one CPU core.
Expect: on the planted ViT, photographs with a disc pasted in that is nearer: the rmse is the same with any
number.
In the paper: NYUd rmse .3876, .3774, .3771, .3785, .3791, .3795 for 0 to 5.
"""

from dataclasses import dataclass

from analyses._run import Findings, main
from analyses.paper import _composites
from analyses.paper._composites import measured, told
from ttreg_interp.data.annotated import Depth
from ttreg_interp.evaluations.dense import DepthProbe
from ttreg_interp.interventions import TestTimeRegister
from ttreg_interp.metrics.dense_probes import DenseProbe


@dataclass(frozen=True)
class Config(_composites.Config):
    """Zero to so many registers."""

    most: int = 5
    """Registers at most."""


def analyse(config: Config) -> Findings:
    """An arm for every number."""
    bench = config.bench
    probe = DenseProbe(epochs=10, seeds=(0,), learning_rate=2e-2, batch_size=2)
    arms = {
        f"{n} register{'s' * (n > 1)}": TestTimeRegister(bench.neurons, n)
        for n in range(1, config.most + 1)
    }
    protocol = DepthProbe(probe=probe, folds=2)
    return told(bench, measured(config, protocol, bench.model, config.annotated(Depth), arms))


if __name__ == "__main__":
    main(globals())
