"""One style of figure: read in a paper's column, told apart by every eye, drawn by layout."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from textwrap import fill
from typing import Any

import matplotlib
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ttreg_interp.hooked import TokenLayout
from ttreg_interp.metrics.intervals import Interval

# Okabe and Ito's palette: told apart under every common form of colour blindness.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#7F7F7F",
)
COLORS = (BLUE, RED, GREEN, ORANGE, PURPLE, GREY, "#000000", "#56B4E9")
"""In the order in which curves take them."""
MARKERS, LINES = "osD^vPX*", ("-", "--", "-.", ":")
"""One a colour, so that curves are told apart without it, and where they lie on each other."""

COLUMN, PAGE = 3.3, 6.8
"""Widths in inches of one and of two columns of a paper."""


def style() -> AbstractContextManager[None]:
    """Figures that are read in a paper's column: 7 point letters, thin lines, text kept as text."""
    return matplotlib.rc_context(
        {
            "font.size": 7,
            "axes.titlesize": 7,
            "legend.fontsize": 6,
            "legend.frameon": False,
            "axes.linewidth": 0.6,
            "lines.linewidth": 1.2,
            "lines.markersize": 3,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "svg.fonttype": "none",
            "svg.hashsalt": "ttreg_interp",
        }
    )


def panels(rows: int, columns: int, height: float = 2.0, width: float = PAGE) -> tuple[Figure, Any]:
    """A figure of so many panels; the axes as [row, column]."""
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def curve(
    axes: Axes, values: Sequence[Interval], at: Sequence[float], place: int, label: str
) -> None:
    """Means with the band of their intervals."""
    look = {"color": COLORS[place % len(COLORS)], "marker": MARKERS[place % len(MARKERS)]}
    look |= {"ls": LINES[place % len(LINES)], "markersize": 4.5 - 0.7 * (place % 4)}
    axes.plot(at, [value.estimate for value in values], label=label, **look)
    ends = [value.low for value in values], [value.high for value in values]
    axes.fill_between(at, *ends, color=look["color"], alpha=0.2, lw=0)


def by_layer(axes: Axes) -> None:
    """Whole numbers below, and what they are."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("block")


def written_out(axis: Any, *steps: int) -> None:
    """A logarithmic axis with plain numbers at 1, 2, 5 (or `steps`) times powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=steps or (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def bars(
    axes: Axes, values: Mapping[str, Interval | None], color: str | Sequence[str] = BLUE
) -> None:
    """Estimates with intervals, one line each, the first on top; a line without a value is empty."""
    colors = [color] * len(values) if isinstance(color, str) else color
    for place, value in enumerate(values.values()):
        if value is not None:
            axes.plot([value.low, value.high], [place, place], color=colors[place])
            axes.plot(value.estimate, place, "o", ms=3, color=colors[place])
    axes.set(yticks=range(len(values)), yticklabels=list(values), ylim=(len(values) - 0.5, -0.5))
    axes.grid(axis="x", lw=0.3)


def token_map(axes: Axes, layout: TokenLayout, values: Float[Tensor, " token"], **look: Any) -> Any:
    """Values of the patches as a picture."""
    picture = axes.imshow(
        layout.grid(values).float().numpy(), interpolation="nearest", aspect="equal", **look
    )
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return picture


def photograph(axes: Axes, pixels: Float[Tensor, "channel height width"]) -> None:
    """An image, its own darkest value as black and its brightest as white."""
    low, high = pixels.amin(), pixels.amax()
    shown = (pixels - low) / (high - low).clamp_min(1e-6)
    axes.imshow(shown.permute(1, 2, 0).float().numpy(), aspect="equal")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def sheet(
    rows: Sequence[Tensor],
    columns: Mapping[str, tuple[TokenLayout, Float[Tensor, "image token"]]],
    color_map: str = "viridis",
    shared: bool = False,
) -> Figure:
    """Images below each other, and beside each one its maps.

    Args:
        rows: pixels of the images.
        columns: title -> layout and values; as many images as rows.
        color_map: of the maps.
        shared: one colour scale for all maps of an image, else one a map.
    """
    n_columns, aspect = 1 + len(columns), rows[0].shape[1] / rows[0].shape[2]
    cell = min(PAGE / n_columns, 1.15)
    size = (cell * n_columns, (cell * aspect + 0.04) * len(rows) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.0, hspace=0.0)  # type: ignore[union-attr]
    axes = figure.subplots(len(rows), n_columns, squeeze=False)
    for row, pixels in enumerate(rows):
        photograph(axes[row, 0], pixels)
        grids = [layout.grid(values[row]) for layout, values in columns.values()]
        limits = {}
        if shared:
            limits = {"vmin": min(float(g.min()) for g in grids), "vmax": max(float(g.max()) for g in grids)}  # fmt: skip
        for place, (layout, values) in enumerate(columns.values(), start=1):
            token_map(axes[row, place], layout, values[row], cmap=color_map, **limits)
    for axis, title in zip(axes[0], ("image", *columns), strict=True):
        axis.set_title(fill(title, 17), pad=3, fontsize=6)
    return figure
