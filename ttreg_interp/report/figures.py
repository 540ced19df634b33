"""Figures for papers: maps before and after, and curves by layer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttreg_interp.errors import DataError
from ttreg_interp.metrics.trace import Effect, Example
from ttreg_interp.report.curves import arm_layout, reader_rows
from ttreg_interp.report.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 6.75
"""Inches: the text width of most conferences."""
BEFORE, AFTER, REGISTER = "#0072B2", "#D55E00", "#000000"
"""Okabe and Ito's palette, told apart by all common kinds of colour vision."""
STYLE: dict[Any, Any] = {"font.size": 8, "axes.titlesize": 8, "svg.hashsalt": "ttreg_interp"}
"""Of every figure; the salt makes equal figures equal files."""


def before_after_figure(
    source: Effect | Sequence[Example] | Path | str, path: Path | str, layer: int = -1
) -> list[Path]:
    """Maps of patch norms and of attention to patches, before and after; one colour scale a pair.

    Args:
        source: what `measure_effect(..., n_examples=4)` returned, or its examples; or a run
            directory, of which the first four images and two arms are drawn, with the images.
        path: file name without suffix; `.png` and `.svg` are written.
        layer: which layer's maps; negative numbers count from the end.

    Returns:
        The files.

    Raises:
        DataError: no examples, or no such layer.
        ArtifactError: no readable run directory.
    """
    examples, pictures = _examples(source)
    if not examples:
        raise DataError("No examples to draw: measure the effect with n_examples=4 or so.")
    n_layers, height, width = examples[0].norms_before.shape
    if not -n_layers <= layer < n_layers:
        raise DataError(f"No layer {layer}: the maps have layers 0 to {n_layers - 1}.")
    sheet = _Sheet(len(examples), height / width, bool(pictures))
    with _figure(sheet.size, path) as (figure, files):
        for row, example in enumerate(examples):
            name = sheet.axes(figure, row, sheet.name_column)
            name.set_ylabel(_short(example.name))
            if pictures:
                name.imshow(pictures[row].numpy(), aspect="auto")
            for side, (what, colours) in enumerate(_MAPS.items()):
                maps = [getattr(example, f"{what}_{when}")[layer] for when in ("before", "after")]
                _draw_pair(
                    figure, sheet, (row, side), [one.float().numpy() for one in maps], colours
                )
        for side, what in enumerate(("patch norm", "attention to patches")):
            title = f"{what}, layer {layer % n_layers}"
            figure.text(*sheet.title_place(side), title, ha="center")
    return files


def layer_curves_figure(effect: Effect, path: Path | str) -> list[Path]:
    """By layer: largest and median patch norm, and attention to patches and to the register.

    Args:
        effect: what `measure_effect` returned.
        path: file name without suffix; `.png` and `.svg` are written.

    Returns:
        The files.
    """
    with _figure((WIDTH, 2.7), path) as (figure, files):
        figure.set_layout_engine("constrained")
        norms, attention = figure.subplots(1, 2)
        _curve(norms, effect, "max_norm_before", "largest, before", (BEFORE, "-o"))
        _curve(norms, effect, "max_norm_after", "largest, after", (AFTER, "-s"))
        _curve(norms, effect, "median_norm_before", "median, before", (BEFORE, ":o"))
        _curve(norms, effect, "median_norm_after", "median, after", (AFTER, ":s"))
        norms.set(xlabel="layer", ylabel="patch norm")
        if _spread(effect) > 10:
            _count_in_decades(norms)
        _curve(attention, effect, "max_attention_before", "one patch, before", (BEFORE, "-o"))
        _curve(attention, effect, "max_attention_after", "one patch, after", (AFTER, "-s"))
        if effect.intervention.n_added_tokens:
            drawn = ("attention_on_register", "register, after")
            _curve(attention, effect, *drawn, (REGISTER, "--^"))
        attention.set(xlabel="layer", ylabel="share of attention", ylim=(0, None))
        for axes in (norms, attention):
            _finish(axes)
    return files


@contextmanager
def _figure(size: tuple[float, float], path: Path | str) -> Iterator[tuple["Figure", list[Path]]]:
    """A figure, and the files that it is saved to afterwards."""
    import matplotlib
    from matplotlib.figure import Figure

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(path.name + suffix) for suffix in (".png", ".svg")]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size)
        yield figure, files
        figure.savefig(files[0], dpi=200)
        figure.savefig(files[1], metadata={"Date": None})


def _examples(
    source: Effect | Sequence[Example] | Path | str,
) -> tuple[tuple[Example, ...], list[Any]]:
    """Examples, and their pictures where the source is a run directory."""
    if isinstance(source, Effect):
        return source.examples, []
    if not isinstance(source, Path | str):
        return tuple(source), []
    run = Run.load(source)
    if len(run.info["arms"]) < 2:
        raise DataError(f"{source} has one arm; before and after are two.")
    norms, attention = [], []
    for number in (0, 1):
        layout = arm_layout(run.info["arms"][number])
        norms.append(layout.grid(run.of_arm(number)["norms"]))
        attention.append(layout.grid(reader_rows(run, number)))
    names = [image["name"] for image in run.info["images"][:4]]
    maps = zip(names, *norms, *attention, strict=False)
    return tuple(Example(*row) for row in maps), list(run.maps["thumbnails"][: len(names)])


_MAPS = {"norms": "viridis", "attention": "magma"}
"""Fields of an Example by the start of their name, and their colours."""


@dataclass(frozen=True)
class _Sheet:
    """Where the maps stand, in inches: name or picture, then two pairs of maps with their bars."""

    n_rows: int
    aspect: float
    with_pictures: bool

    @property
    def map_width(self) -> float:
        n_maps = 4 + self.with_pictures
        return (WIDTH - 0.3 - 0.1 * self.with_pictures - 2 * 0.62) / n_maps

    @property
    def size(self) -> tuple[float, float]:
        return WIDTH, 0.45 + self.n_rows * (self.map_width * self.aspect + 0.09)

    @property
    def name_column(self) -> tuple[float, float]:
        """Left end and width."""
        return 0.22, self.map_width if self.with_pictures else 0.01

    def column(self, side: int, place: int) -> tuple[float, float]:
        """Left end and width of before (0), after (1) or the bar (2) of a pair."""
        start = 0.22 + self.with_pictures * (self.map_width + 0.1) + 0.04
        start += side * (2 * self.map_width + 0.62)
        return start + place * (self.map_width + 0.05), self.map_width if place < 2 else 0.06

    def axes(self, figure: "Figure", row: int, column: tuple[float, float]) -> "Axes":
        width, height = self.size
        map_height = self.map_width * self.aspect
        top = 0.4 + row * (map_height + 0.09)
        left, right = column
        box = (left / width, 1 - (top + map_height) / height, right / width, map_height / height)
        made = figure.add_axes(box, xticks=[], yticks=[])
        made.spines[:].set_visible(False)
        return made

    def title_place(self, side: int) -> tuple[float, float]:
        middle = self.column(side, 1)[0] - 0.025
        return middle / self.size[0], 1 - 0.16 / self.size[1]


def _draw_pair(
    figure: "Figure", sheet: _Sheet, place: tuple[int, int], maps: list[Any], colours: str
) -> None:
    """Two maps, before and after, under one colour scale with its bar."""
    from matplotlib.ticker import MaxNLocator

    row, side = place
    limits = {"vmin": min(one.min() for one in maps), "vmax": max(one.max() for one in maps)}
    both = [sheet.axes(figure, row, sheet.column(side, i)) for i in (0, 1)]
    drawn = [
        axes.imshow(values, cmap=colours, interpolation="nearest", aspect="auto", **limits)
        for axes, values in zip(both, maps, strict=True)
    ]
    for axes, title in zip(both, ("before", "after"), strict=True):
        axes.set_title(title if row == 0 else "", pad=3)
    bar = figure.colorbar(drawn[0], cax=sheet.axes(figure, row, sheet.column(side, 2)))
    bar.ax.yaxis.set_major_locator(MaxNLocator(4, prune="both"))
    bar.ax.tick_params(length=2, pad=2)
    bar.outline.set_visible(False)


def _curve(axes: "Axes", effect: Effect, name: str, label: str, look: tuple[str, str]) -> None:
    colour, style = look
    layers = [row.layer for row in effect.layers]
    values = [getattr(row, name) for row in effect.layers]
    axes.plot(layers, values, style, color=colour, label=label, markersize=3)


def _spread(effect: Effect) -> float:
    """Largest norm in units of the smallest median."""
    largest = max(max(row.max_norm_before, row.max_norm_after) for row in effect.layers)
    least = min(min(row.median_norm_before, row.median_norm_after) for row in effect.layers)
    return largest / least if least > 0 else 1.0


def _count_in_decades(axes: "Axes") -> None:
    """A logarithmic axis with 1, 2, 5, 10, ... written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _finish(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _short(name: str, length: int = 22) -> str:
    """Names stand beside a map; `$` would start a formula."""
    shown = name if len(name) <= length else f"{name[: length - 1]}…"
    return shown.replace("$", r"\$")
