"""How many neurons, from which layers, found at which layer?

Paper and place: arXiv 2506.08010, appendix A.4 (top_k, top_layer); spec of the reference code.
Question: how many of the best-ranked neurons, from blocks up to which, have to move until no outliers are
left, at what change of the output; and does the list depend on the layer at which outliers are told?
Command: python -m analyses.paper.sweep_neurons --out OUT
Runtime: about 50 s on one CPU core.
Expect: on the planted ViT outliers vanish once block 2 is searched, where the planted neurons that start
them lie; the best six are the planted ones, from every detection layer behind them.
In the paper: top_k 10 with top_layer 5 (OpenCLIP ViT-B/16), 45 with top_layer 17 (DINOv2 ViT-L/14).
"""

from dataclasses import dataclass

from matplotlib.figure import Figure

from analyses._bench import Bench, BenchConfig
from analyses._figures import curve, panels
from analyses._run import Findings, main
from ttreg_interp.discovery import FindConfig, find_register_neurons
from ttreg_interp.interventions import NeuronSet, TestTimeRegister
from ttreg_interp.metrics.arm_metrics import Cosine, OutlierCount
from ttreg_interp.metrics.compare import compare
from ttreg_interp.metrics.comparison import Comparison
from ttreg_interp.metrics.intervals import Interval, mean_interval

Row = tuple[int, int, float]


@dataclass(frozen=True)
class Config(BenchConfig):
    """A grid of top_layer and top_k, and some detection layers."""

    n_images: int = 8
    """The first so many images."""
    counts: tuple[int, ...] = (1, 2, 4, 6, 8, 16)
    """top_k."""
    around: tuple[int, ...] = (-1, 0, 1, 2)
    """top_layer, counted from the block where outliers emerge."""
    detect_layers: tuple[int, ...] = ()
    """Blocks at which outliers are told; absent: where they emerge, the chosen one, the last two."""


def ranking(bench: Bench, detect_layer: int | None = None, top_k: int = 1) -> list[Row]:
    """Neurons of all blocks but the first, best first."""
    options = FindConfig(
        first_layer=1,
        last_layer=bench.outliers.detect_layer if detect_layer is None else detect_layer,
        detect_layer=detect_layer,
        top_k=top_k,
        evidence=False,
        batch_size=bench.batch_size,
        seed=bench.seed,
    )
    return list(find_register_neurons(bench.model, bench.pixels, options).ranking)


def grid(config: Config, bench: Bench) -> tuple[dict[tuple[int, int], NeuronSet], list[Row]]:
    """(top_layer, top_k) -> neurons."""
    rows = ranking(bench)
    cells = {}
    for step in config.around:
        allowed = [row for row in rows if row[0] <= bench.emerges_at + step]
        for k in config.counts:
            if k <= len(allowed):
                cells[bench.emerges_at + step, k] = NeuronSet.of([row[:2] for row in allowed[:k]])
    return cells, rows


def left(table: Comparison, name: str, metric: str, seed: int) -> Interval:
    """Outliers left, as a share of those before, image by image."""
    before, after = (table.per_image[arm][metric] for arm in ("intact", name))
    some = before > 0
    return mean_interval(after[some] / before[some], seed)


def draw(numbers: dict[str, dict], config: Config) -> Figure:
    """Outliers left, and cosine to the intact output, over top_k."""
    figure, axes = panels(1, 2)
    tops = sorted({entry["top_layer"] for entry in numbers.values()})
    for place, top in enumerate(tops):
        cells = [entry for entry in numbers.values() if entry["top_layer"] == top]
        counts = [entry["top_k"] for entry in cells]
        curve(axes[0, 0], [e["outliers_left"] for e in cells], counts, place, f"up to block {top}")
        curve(axes[0, 1], [e["cosine"] for e in cells], counts, place, f"up to block {top}")
    axes[0, 0].set(ylabel="share of outliers left")
    axes[0, 1].set(ylabel="cosine to the intact output")
    for axis in axes.flat:
        axis.set(xscale="log", xlabel="top_k", xticks=config.counts, xticklabels=config.counts)
        axis.minorticks_off()
    axes[0, 0].legend()
    return figure


def analyse(config: Config) -> Findings:
    """The grid; then detection layers."""
    bench = config.bench.part(slice(0, config.n_images))
    cells, rows = grid(config, bench)
    outliers = OutlierCount(layer=bench.outliers.detect_layer, threshold=bench.threshold)
    arms = {f"{layer} {k}": TestTimeRegister(neurons) for (layer, k), neurons in cells.items()}
    table = compare(
        bench.model, bench.pixels, arms, [outliers, Cosine()], config.batch_size, seed=config.seed
    )
    numbers = {
        f"{layer} {k}": {
            "top_layer": layer,
            "top_k": k,
            "outliers_left": left(table, f"{layer} {k}", outliers.name, config.seed),
            "cosine": table[f"{layer} {k}", "cosine"].value,
        }
        for layer, k in cells
    }
    enough = [cell for cell in numbers.values() if cell["outliers_left"].estimate < 0.05]
    least = min(enough, key=lambda cell: (cell["top_k"], cell["top_layer"]), default=None)
    layers = list(config.detect_layers) or sorted(
        {bench.emerges_at, bench.outliers.detect_layer, bench.last - 1, bench.last}
    )
    reference = NeuronSet.of([row[:2] for row in rows[: len(bench.neurons)]])
    overlap = {
        layer: len(reference & NeuronSet.of([row[:2] for row in ranking(bench, layer, len(reference))[: len(reference)]]))
        for layer in layers
    }  # fmt: skip
    known = len(reference & bench.neurons)
    said = "no cell leaves less than 5 %"
    if least:
        said = f"top_k {least['top_k']} up to block {least['top_layer']} leaves {least['outliers_left']} of the outliers"
    headline = f"{said}; best {len(reference)} from detection layers {layers}: {list(overlap.values())} the same"
    words = (
        f"Neurons of blocks 1 and later, ranked by what they write along the outliers: {said}, at cosine "
        f"{least['cosine'] if least else '-'} to the intact output. Of the best {len(reference)}, {known} are "
        f"the register neurons of this run. Told at blocks {layers}, the best {len(reference)} share "
        f"{list(overlap.values())} with those told at block {bench.outliers.detect_layer} "
        f"({len(bench.pixels)} images)."
    )
    everything = {"grid": numbers, "overlap_by_detection_layer": overlap, "ranking": rows[:20], "register_neurons_among_best": known}  # fmt: skip
    return Findings(headline, words, everything, {"figure": draw(numbers, config)}, bench.facts)


if __name__ == "__main__":
    main(globals())
