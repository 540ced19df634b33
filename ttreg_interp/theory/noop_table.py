"""NoOpTable: what the measures of `theory.sinks` found, head by head and layer by layer."""

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from ttreg_interp.metrics.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class HeadNoOp:
    """One head: c is what the sink gives a query, r what the whole head gives it, in d_model."""

    layer: int
    """Which block."""
    head: int
    """Which head."""
    attention: Interval
    """Share of attention on the sink."""
    value_ratio: Interval
    """Norm of the sink's value over the mean norm of the others': below 1 is a value drain."""
    sink_size: Interval
    """|c| / |x|, x being the residual stream that it is added to."""
    other_size: Interval
    """|r - c| / |x|: what comes from all other keys."""
    cosine: float
    """Mean cosine between the c of two queries, of any tokens and images: 1 is a constant vector."""
    mlp_gain: Interval
    """Response of this layer's MLP to c, in units of that to a random direction: 0 if c is in the
    kernel of norm and input weights."""
    mlp_gain_of_others: Interval
    """Control: the same for r - c."""
    head_gain: Interval | None
    """Response of the model's own head to c; None where that is not linear."""
    head_gain_of_others: Interval | None
    """Control: the same for r - c."""
    constant: float
    """|mean r| / mean |x|: the part of the head's output that is the same everywhere, a bias."""
    varying: float
    """Root mean square of r - mean r, over mean |x|: what a bias could not give."""
    varying_without_sink: float
    """The same had the head no sink to attend to, its weights on the other keys scaled up to one."""

    @property
    def no_op(self) -> float:
        """By how much the sink turns the head off: 1 - varying / varying_without_sink.

        1: nothing but a constant is left. 0: the sink makes no difference to what varies.
        """
        return 1 - self.varying / self.varying_without_sink if self.varying_without_sink else 0.0


@dataclass(frozen=True)
class LayerNoOp:
    """One layer: change of the model's output, ||f - f_full|| / ||f_full||."""

    layer: int
    """Which block."""
    removed: Interval
    """Without this layer's attention (zero in its place)."""
    sink_only: Interval
    """With only what the sink gives, weights as they are: small if the rest does not matter."""
    without_sink: Interval
    """With all but what the sink gives, weights as they are."""


@dataclass(frozen=True)
class NoOpTable:
    """Which heads do a no-op, and by how much."""

    model: str
    """Spec of the model."""
    sink: str
    """Which rows were taken for the sink, in words."""
    n_images: int
    """Images (or texts) that have a sink; the measures are over these."""
    n_without: int
    """Those in which none was found."""
    heads: tuple[HeadNoOp, ...]
    """All heads, in order."""
    layers: tuple[LayerNoOp, ...]
    """All layers, in order; empty if removal was not asked for."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        body = asdict(self)
        for row, head in zip(body["heads"], self.heads, strict=True):
            row["no_op"] = head.no_op
        return body

    def to_markdown(self) -> str:
        """One table of heads, and one of layers."""
        title = f"{self.model}, sink: {self.sink}, {self.n_images} images"
        missing = f" ({self.n_without} more without a sink)" if self.n_without else ""
        names = [field.name for field in fields(HeadNoOp)]
        heads = [
            [*(_cell(getattr(row, name)) for name in names), _cell(row.no_op)] for row in self.heads
        ]
        parts = [title + missing, _table([*names, "no_op"], heads)]
        if self.layers:
            names = [field.name for field in fields(LayerNoOp)]
            rows = [[_cell(getattr(row, name)) for name in names] for row in self.layers]
            parts.append(_table(names, rows))
        return "\n\n".join(parts)

    def figure(self) -> "Figure":
        """Layers by heads, one panel a measure, and the layers' removal."""
        from matplotlib.figure import Figure

        panels = ("attention", "value_ratio", "cosine", "mlp_gain", "no_op")
        figure = Figure(figsize=(6.8, 2.4), layout="constrained")
        axes = figure.subplots(1, len(panels) + bool(self.layers), sharey=True)
        n_heads = 1 + max(row.head for row in self.heads)
        for axis, name in zip(axes, panels, strict=False):
            values = [_number(getattr(row, name)) for row in self.heads]
            grid = [values[start : start + n_heads] for start in range(0, len(values), n_heads)]
            axis.imshow(grid, aspect="auto", cmap="cividis", vmin=0, vmax=1)
            axis.set(title=name.replace("_", " "), xlabel="head")
        figure.colorbar(axes[0].images[0], ax=axes[len(panels) - 1])
        axes[0].set(ylabel="layer")
        for name in ("removed", "sink_only", "without_sink") if self.layers else ():
            change = [getattr(row, name).estimate for row in self.layers]
            axes[-1].plot(change, range(len(change)), label=name.replace("_", " "))
            axes[-1].set(title="change of output")
            axes[-1].legend(fontsize=5)
        return figure


def _number(value: Interval | float) -> float:
    return value.estimate if isinstance(value, Interval) else value


def _cell(value: Interval | float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
