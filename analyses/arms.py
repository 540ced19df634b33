"""Every arm on one classifier: what a test-time register costs, against its controls.

Paper and place: the causal table behind arXiv 2506.08010, section 3 and its rebuttal.
Question: how many images does a classifier lose when its register neurons are zeroed, replaced, or
moved into a register, and when as many random neurons are zeroed?
Command: python -m analyses.arms --model timm:vit_tiny_patch16_224@model.safetensors \\
    --images FOLDER --labels FOLDER/labels.csv --neurons neurons.json \\
    --fit-images OTHER_FOLDER --out OUT
Runtime: about 10 minutes for a ViT-Ti, 300 images and 37 arms on one core.
Expect: zeroing costs most, a calibrated register at most 1.5 points, random neurons nothing.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor

import ttreg_interp as tt
from analyses._run import Findings, main
from ttreg_interp import interventions as act
from ttreg_interp.data.labels import read_labels
from ttreg_interp.metrics.arm_metrics import Labels, MaxOverMedian, SameTop1, Top1
from ttreg_interp.metrics.arm_runs import ArmRun
from ttreg_interp.metrics.compare import random_controls
from ttreg_interp.metrics.comparison import Arms


@dataclass(frozen=True)
class Config:
    """What to run."""

    model: str
    """Model spec of a classifier."""
    images: Path
    """Folder of images."""
    labels: Path
    """CSV of file, class_index, name."""
    neurons: Path
    """Register neurons, from `ttreg find` on other images."""
    fit_images: Path
    """Folder of other images, on which means, samples, k', v' and multiplicities are fitted."""
    out: Path
    """Folder for result.json and summary.md."""
    n_controls: int = 20
    """Draws of matched random neurons."""
    limit: int | None = None
    """Use at most so many images."""
    batch_size: int = 25
    """Images of one forward pass."""
    seed: int = 0
    """Of controls, noise and intervals."""


class Percent(Top1):
    """Top-1 in per cent, so that differences are points."""

    title: ClassVar[str] = "top-1 %"

    def measure(self, run: ArmRun, intact: ArmRun, labels: Labels | None) -> Tensor:
        """See ArmMetric."""
        return 100 * super().measure(run, intact, labels).double()


def arms(model: tt.HookedViT, found: tt.RegisterNeurons, fit: list[Tensor], config: Config) -> Arms:
    """The arms of the table, by name; `fit` are pixels of other images than those of the table."""
    neurons, seed = found.neurons, config.seed
    zero = act.ZeroNeurons(neurons)
    return {
        "neurons zeroed": zero,
        "neurons at their mean": act.mean_neurons(model, neurons, fit),
        "neurons resampled": act.resample_neurons(model, neurons, fit, seed=seed),
        "neurons shuffled over tokens": act.ShuffleNeurons(neurons, seed=seed),
        "neurons replaced by noise": act.NoiseNeurons(neurons, seed=seed),
        **{f"{n} register{'s' * (n > 1)}": act.TestTimeRegister(neurons, n) for n in range(1, 7)},
        "register, reference semantics": act.TestTimeRegister(neurons, semantics="reference"),
        **calibrated(model, found, fit),
        "token added, nothing moved": act.ExtraTokens(1),
        f"{config.n_controls} x as many random neurons zeroed": random_controls(
            neurons, model.cfg.d_mlp, config.n_controls, seed
        ),
    }


def calibrated(
    model: tt.HookedViT, found: tt.RegisterNeurons, fit: list[Tensor]
) -> dict[str, act.Intervention]:
    """A register, one hidden until after its neurons, and k', v': each counting as 1 and as tau keys."""
    assert found.threshold is not None and found.detect_layer is not None
    outliers = act.Outliers(found.threshold, found.detect_layer)
    after = max(found.neurons.by_layer()) + 1
    register = act.TestTimeRegister(found.neurons)
    hidden = replace(register, visible_from_layer=after)
    bias = act.mean_attention_bias(model, register, fit)
    plain, late = (
        act.calibrate_multiplicity(model, one, fit, outliers) for one in (register, hidden)
    )
    tau = plain.multiplicity
    zero = act.ZeroNeurons(found.neurons)
    return {
        f"register counting as {tau:.3g} keys (calibrated)": plain,
        f"register hidden before block {after}": hidden,
        f"the same, counting as {late.multiplicity:.3g} keys (calibrated)": late,
        "attention bias, neurons zeroed": zero + bias,
        f"the same, counting as {tau:.3g} keys": zero + replace(bias, copies=tau),
    }


def analyse(config: Config) -> Findings:
    """The table of all arms."""
    model = tt.load(config.model)
    found = tt.RegisterNeurons.load(config.neurons)
    found.check_model(model)
    tested = tt.images(config.images, limit=config.limit)
    others = tt.images(config.fit_images)
    fit = [batch.pixels for batch in others.batches(model.preprocess, config.batch_size)]
    table = tt.compare(
        model,
        tested,
        arms(model, found, fit, config),
        [Percent(), SameTop1(), MaxOverMedian(model.cfg.n_layers - 2)],
        config.batch_size,
        read_labels(config.labels).indices(tested.paths),
        config.seed,
    )
    zeroed = table["neurons zeroed", Percent.title].difference
    register = table["1 register", Percent.title].difference
    return Findings(
        headline=f"top-1 points: neurons zeroed {zeroed}, one register {register}",
        words=table.to_markdown(),
        numbers=table.to_dict(),
        figures={},
        facts={"tested": tested.digest(), "fitted": others.digest()},
    )


if __name__ == "__main__":
    main(globals())
