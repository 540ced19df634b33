"""`ttreg apply`: run a model with a test-time register and say what changed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ttreg_interp.cli.common import ImageOptions, ModelOptions, counting, emit, table, write_json


@dataclass(frozen=True, kw_only=True)
class Apply(ModelOptions, ImageOptions):
    """Run images with and without a test-time register; write summary.json, figures and a report."""

    out: Path
    """Folder for the results; made if missing."""
    neurons: Path | None = None
    """A neuron file from `ttreg find`, or a published list."""
    intervention: Path | None = None
    """An intervention as JSON, instead of --neurons."""
    n_registers: int = 1
    """Added tokens."""
    semantics: Literal["paper", "reference"] = "paper"
    """'paper': per-neuron maximum, Algorithm 2. 'reference': as the authors' code computes it."""
    batch_size: int = 8
    """Images of one forward pass."""
    workers: int = 0
    """Processes that decode images."""
    n_examples: int = 4
    """Of how many images to draw maps."""
    force: bool = False
    """Use neurons that were found on other weights (another hash)."""
    json: bool = False
    """Print summary.json instead of tables."""

    def run(self) -> int:
        """Measure, write, print."""
        from ttreg_interp.metrics.trace import measure_effect

        model = self.load()
        intervention = self._intervention(model)
        source = self.open()
        batches = source.batches(model.preprocess, self.batch_size, self.workers)
        with counting(len(source), "apply") as progress:
            effect = measure_effect(
                model,
                batches,
                intervention,
                n_examples=self.n_examples,
                progress=progress,
            )
        summary = {**effect.to_dict(), **self._provenance(model, source)}
        summary["images"]["skipped"] = [str(skipped) for skipped in batches.skipped]
        self._write(model, source, intervention, effect, summary)
        emit(summary, self.json, *effect_tables(effect), f"results in {self.out}")
        return 0

    def _intervention(self, model: Any) -> Any:
        from ttreg_interp.discovery import RegisterNeurons
        from ttreg_interp.errors import DataError
        from ttreg_interp.interventions import Intervention, TestTimeRegister

        if (self.neurons is None) == (self.intervention is None):
            raise DataError("Give either --neurons FILE or --intervention FILE.")
        if self.intervention is not None:
            if not self.intervention.is_file():
                raise DataError(f"No intervention file at {self.intervention}.")
            return Intervention.from_json(self.intervention.read_text(encoding="utf-8"))
        assert self.neurons is not None
        found = RegisterNeurons.load(self.neurons)
        found.check_model(model, strict=not self.force)
        if not len(found):
            raise DataError(
                f"{self.neurons} holds no neurons, so there is nothing to move: {found}"
            )
        return TestTimeRegister(
            found.neurons, n_registers=self.n_registers, semantics=self.semantics
        )

    def _provenance(self, model: Any, source: Any) -> dict[str, Any]:
        from ttreg_interp.hooked import weights_hash
        from ttreg_interp.provenance import versions

        return {
            "model": model.spec,
            "weights_hash": weights_hash(model.source),
            "image_size": list(model.image_size),
            "images": {"digest": source.digest()},
            "versions": versions(),
        }

    def _write(
        self, model: Any, source: Any, intervention: Any, effect: Any, summary: dict
    ) -> None:
        from ttreg_interp.interventions import Empty
        from ttreg_interp.report.figures import before_after_figure, layer_curves_figure
        from ttreg_interp.report.html import write_report
        from ttreg_interp.report.record import record_run

        write_json(self.out / "summary.json", summary)
        before_after_figure(effect, self.out / "maps")
        layer_curves_figure(effect, self.out / "layers")
        arms = {"intact": Empty(), "register": intervention}
        record_run(model, source, arms, self.out, n_images=self.n_examples, summary=summary)
        write_report(self.out)


def effect_tables(effect: Any) -> list[Any]:
    """The effect of an intervention for a terminal."""
    layers = table(
        f"{effect.intervention.describe()}, on {effect.n_images} images",
        "layer", "max/median patch norm", "after", "largest [CLS] attention to a patch", "after", "to the register",
    )  # fmt: skip
    for row in effect.layers:
        layers.add_row(
            str(row.layer),
            f"{row.max_over_median_before:.2f}",
            f"{row.max_over_median_after:.2f}",
            f"{row.max_attention_before:.3f}",
            f"{row.max_attention_after:.3f}",
            f"{row.attention_on_register:.3f}",
        )
    change = f"output: relative change {effect.relative_change}, cosine {effect.cosine}"
    if effect.same_top1 is not None:
        change += f", same top-1 {effect.same_top1}"
    return [layers, change]
