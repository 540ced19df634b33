"""Figures for papers and the terminal's user: maps before and after, and curves by layer."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttreg_interp.errors import DataError
from ttreg_interp.metrics.trace import Effect, Example

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 6.75
"""Inches: a page of two columns, the text width of most conferences."""
BEFORE, AFTER, REGISTER = "#0072B2", "#D55E00", "#000000"
"""Okabe and Ito's palette, told apart by all common kinds of colour vision."""


def before_after_figure(
    effect: Effect | Sequence[Example], path: Path | str, layer: int = -1
) -> list[Path]:
    """Norm and [CLS] attention maps of a few images, before and after, one colour scale a pair.

    Args:
        effect: what `measure_effect(..., n_examples=4)` returned, or its examples.
        path: file name without suffix; `.png` and `.svg` are written.
        layer: which layer's maps; negative numbers count from the end.

    Returns:
        The files.

    Raises:
        DataError: no examples, or no such layer.
    """
    examples = effect.examples if isinstance(effect, Effect) else tuple(effect)
    if not examples:
        raise DataError("No examples to draw: measure the effect with n_examples=4 or so.")
    n_layers = len(examples[0].norms_before)
    if not -n_layers <= layer < n_layers:
        raise DataError(f"No layer {layer}: the maps have layers 0 to {n_layers - 1}.")
    pairs = (
        ("patch norm", "norms_before", "norms_after", "viridis"),
        ("[CLS] attention", "attention_before", "attention_after", "cividis"),
    )
    figure, axes = _subplots(len(examples), 4, examples[0].norms_before[0].shape)
    for row, example in zip(axes, examples, strict=True):
        row[0].set_ylabel(_short(example.name))
        for side, (_, before, after, colours) in enumerate(pairs):
            maps = [getattr(example, name)[layer].float().numpy() for name in (before, after)]
            _draw_pair(figure, row[2 * side : 2 * side + 2], maps, colours)
    for side, (title, *_) in enumerate(pairs):
        axes[0][2 * side].set_title(f"{title}, before")
        axes[0][2 * side + 1].set_title(f"{title}, after")
    figure.suptitle(f"layer {layer % n_layers}", fontsize="medium")
    return _save(figure, path)


def layer_curves_figure(effect: Effect, path: Path | str) -> list[Path]:
    """By layer: largest and median patch norm, and attention on patches and on the register.

    Args:
        effect: what `measure_effect` returned.
        path: file name without suffix; `.png` and `.svg` are written.

    Returns:
        The files.
    """
    plt = _pyplot()
    layers = [row.layer for row in effect.layers]
    figure, (norms, attention) = plt.subplots(1, 2, figsize=(WIDTH, 2.4), layout="constrained")

    def curve(axes: "Axes", name: str, label: str, colour: str, style: str = "-") -> None:
        values = [getattr(row, name) for row in effect.layers]
        axes.plot(layers, values, style, color=colour, label=label, marker="o", markersize=3)

    curve(norms, "max_norm_before", "largest, before", BEFORE)
    curve(norms, "max_norm_after", "largest, after", AFTER)
    curve(norms, "median_norm_before", "median, before", BEFORE, ":")
    curve(norms, "median_norm_after", "median, after", AFTER, ":")
    norms.set(xlabel="layer", ylabel="patch norm", yscale="log")
    curve(attention, "max_attention_before", "one patch, before", BEFORE)
    curve(attention, "max_attention_after", "one patch, after", AFTER)
    curve(attention, "attention_on_register", "register, after", REGISTER, "--")
    attention.set(xlabel="layer", ylabel="largest [CLS] attention on")
    for axes in (norms, attention):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return _save(figure, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 8, "svg.hashsalt": "ttreg_interp"})
    return plt


def _subplots(rows: int, columns: int, grid: Sequence[int]) -> tuple["Figure", Any]:
    """Axes without ticks, as high as maps of this grid need."""
    height = rows * WIDTH / columns * grid[0] / grid[1] + 0.5
    figure, axes = _pyplot().subplots(
        rows, columns, figsize=(WIDTH, height), squeeze=False, layout="constrained"
    )
    for one in axes.flat:
        one.set(xticks=[], yticks=[])
    return figure, axes


def _draw_pair(figure: "Figure", axes: Any, maps: list[Any], colours: str) -> None:
    """Two maps under one colour scale, with its bar."""
    low, high = min(map(_least, maps)), max(float(one.max()) for one in maps)
    images = [
        one.imshow(values, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
        for one, values in zip(axes, maps, strict=True)
    ]
    figure.colorbar(images[0], ax=list(axes), fraction=0.05, pad=0.02)


def _least(values: Any) -> float:
    return float(values.min())


def _short(name: str, length: int = 24) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _save(figure: "Figure", path: Path | str) -> list[Path]:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(path.name + suffix) for suffix in (".png", ".svg")]
    for file in files:
        figure.savefig(file, dpi=200, metadata={"Date": None} if file.suffix == ".svg" else None)
    _pyplot().close(figure)
    return files
