"""`ttreg demo`: the whole story on a model whose register neurons are known, in under a minute."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ttreg_interp.cli.common import emit, table, write_json

REGISTER = "test-time register"
CONTROL = "as many random neurons zeroed"


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Plant register neurons in a ViT, find them again on real photographs, apply a test-time
    register, run zero and random controls, and write an HTML page. Downloads nothing."""

    out: Path = Path("demo_out")
    """Folder for the page and the numbers; made if missing."""
    layout: str = "timm"
    """Which library's ViT: timm or open_clip."""
    seed: int = 0
    """Of the model, and of the random controls."""
    n_controls: int = 5
    """Draws of matched random neurons."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        """Find, compare with the truth, intervene, show."""
        from ttreg_interp.discovery import FindConfig, find_register_neurons
        from ttreg_interp.hooked import load
        from ttreg_interp.interventions import NeuronSet
        from ttreg_interp.testbed import planted_vit

        began = time.perf_counter()
        source = self._photographs()
        model = load(f"testbed:planted/{self.layout}/tiny/{self.seed}")
        truth = NeuronSet.of(planted_vit(layout=self.layout, size="tiny", seed=self.seed).truth)
        found = find_register_neurons(
            model, source, FindConfig(seed=self.seed, evidence=False), progress=True
        )
        found.save(self.out / "neurons.json")
        arms = self._arms(found, model)
        effects = self._effects(model, source, arms)
        body = self._summary(found, truth, effects)
        page = self._page(model, source, arms, found, body)
        body["seconds"] = round(time.perf_counter() - began, 1)
        write_json(self.out / "summary.json", body)
        exact = found.neurons == truth
        verdict = f"Found {found.neurons.describe()}. " + (
            "Exactly the planted neurons." if exact else f"PLANTED WERE: {truth.describe()}"
        )
        emit(body, self.json, verdict, effect_table(body), f"{body['seconds']} s. Open {page}")
        return 0 if exact else 1

    def _photographs(self) -> Any:
        from ttreg_interp.data.images import images
        from ttreg_interp.testbed import save_photographs

        save_photographs(self.out / "photographs")
        return images(self.out / "photographs")

    def _arms(self, found: Any, model: Any) -> dict[str, Any]:
        from ttreg_interp.interventions import TestTimeRegister, ZeroNeurons

        controls = {
            f"{CONTROL}, draw {seed}": ZeroNeurons(
                found.neurons.matched_random(self.seed + seed, model.cfg.d_mlp)
            )
            for seed in range(self.n_controls)
        }
        return {
            REGISTER: TestTimeRegister(found),
            "register neurons zeroed": ZeroNeurons(found),
            **controls,
        }

    def _effects(self, model: Any, source: Any, arms: dict[str, Any]) -> dict[str, Any]:
        from ttreg_interp.metrics.trace import measure_effects

        batches = source.batches(model.preprocess, batch_size=8)
        return measure_effects(model, batches, arms, seed=self.seed)

    def _summary(self, found: Any, truth: Any, effects: dict[str, Any]) -> dict[str, Any]:
        from ttreg_interp.provenance import versions

        return {
            "model": f"testbed:planted/{self.layout}/tiny/{self.seed}",
            "planted": truth.to_dict(),
            "found": found.neurons.to_dict(),
            "exact": found.neurons == truth,
            "arms": {name: effect.to_dict() for name, effect in effects.items()},
            "versions": versions(),
        }

    def _page(self, model: Any, source: Any, arms: dict[str, Any], found: Any, body: dict) -> Path:
        from ttreg_interp.interventions import Empty
        from ttreg_interp.report.figures import before_after_figure
        from ttreg_interp.report.html import write_report
        from ttreg_interp.report.record import record_run

        shown = {"intact": Empty(), REGISTER: arms[REGISTER]}
        shown["register neurons zeroed"] = arms["register neurons zeroed"]
        sections = body | {"neurons": found.to_dict()}
        record_run(
            model, source, shown, self.out, neurons=found.neurons, n_images=6, summary=sections
        )
        before_after_figure(self.out, self.out / "maps")
        return write_report(self.out)


def effect_table(body: dict[str, Any]) -> Any:
    """Arms of a summary for a terminal; the random controls share a row."""
    from ttreg_interp.metrics.intervals import Interval, controls_interval

    rows = table(
        "What each arm does", "arm", "max/median patch norm, last layer", "change of [CLS]"
    )
    before = next(iter(body["arms"].values()))["layers"][-1]["max_over_median_before"]
    rows.add_row("intact", f"{before:.1f}", "0")
    controls = []
    for name, effect in body["arms"].items():
        change = Interval(**effect["output"]["relative_change"])
        ratio = effect["layers"][-1]["max_over_median_after"]
        if name.startswith(CONTROL):
            controls.append((ratio, change.estimate))
        else:
            rows.add_row(name, f"{ratio:.1f}", str(change))
    if len(controls) > 1:
        ratios, changes = zip(*controls, strict=True)
        name = f"{CONTROL}, {len(controls)} draws"
        rows.add_row(name, f"{sum(ratios) / len(ratios):.1f}", str(controls_interval(changes)))
    return rows
