"""What a run shows, said in sentences."""

from collections.abc import Callable
from typing import Any

from ttreg_interp.report.curves import ArmCurves


def sentences(info: dict[str, Any], curves: list[ArmCurves]) -> list[str]:
    """A few plain sentences: what was run, outliers, attention, output."""
    first, *others = curves
    norm_layer = _peak(first.max_over_median)
    attention_layer = _peak(first.max_attention)
    reader = reader_name(info)
    said = [
        f"{count(len(info['images']), 'image')} through {info['model']['name']} under "
        f"{count(len(curves), 'arm')}. All numbers here are means over these images.",
        f"The largest patch norm is {first.max_over_median[norm_layer]:.3g} times the median in "
        f"layer {norm_layer} of “{first.name}”"
        + _changes([f"{c.max_over_median[norm_layer]:.3g} times" for c in others], others),
        f"{reader} gives one patch {_percent(first.max_attention[attention_layer])} of its attention in "
        f"layer {attention_layer} of “{first.name}”"
        + _changes([_percent(c.max_attention[attention_layer]) for c in others], others),
    ]
    for arm in others:
        if arm.register_attention is not None:
            layer = _peak(arm.register_attention)
            said.append(
                f"Under “{arm.name}” the added tokens draw up to "
                f"{_percent(arm.register_attention[layer])} of that attention, in layer {layer}."
            )
    return said


def cards(info: dict[str, Any], curves: list[ArmCurves]) -> list[dict[str, Any]]:
    """The headline numbers: a title, and one value for each arm with its share of the largest."""
    norm_layer = _peak(curves[0].max_over_median)
    attention_layer = _peak(curves[0].max_attention)
    registers = [arm.register_attention for arm in curves]
    made = [
        _card(
            f"Largest / median patch norm, layer {norm_layer}",
            [arm.max_over_median[norm_layer] for arm in curves],
            "{:.3g}".format,
        ),
        _card(
            f"Largest attention of {reader_name(info)} to one patch, layer {attention_layer}",
            [arm.max_attention[attention_layer] for arm in curves],
            _percent,
        ),
        _card(
            f"Attention to added tokens, layer {attention_layer}",
            [None if one is None else one[attention_layer] for one in registers],
            _percent,
        ),
        _card(
            f"Cosine of the output to that of “{curves[0].name}”",
            [arm.output_cosine for arm in curves],
            "{:.4f}".format,
        ),
    ]
    return made if any(one is not None for one in registers) else [*made[:2], made[3]]


def reader_name(info: dict[str, Any]) -> str:
    """Whose attention is summed up: [CLS], or the mean patch where there is none."""
    return "[CLS]" if info["arms"][0]["layout"]["n_cls"] else "The mean patch"


def count(n: int, what: str) -> str:
    """`3 images`, `1 image`."""
    return f"{n} {what}{'s' * (n != 1)}"


def _peak(values: tuple[float, ...]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _changes(values: list[str], arms: list[ArmCurves]) -> str:
    said = [f"{value} under “{arm.name}”" for value, arm in zip(values, arms, strict=True)]
    return "".join(f"; {part}" for part in said) + "."


def _percent(share: float) -> str:
    """A share that is small is not nothing."""
    return f"{share:.1%}" if share == 0 or share >= 0.0005 else "<0.1%"


def _card(title: str, values: list[float | None], write: Callable[[float], str]) -> dict[str, Any]:
    largest = max((abs(value) for value in values if value is not None), default=0.0) or 1.0
    return {
        "title": title,
        "values": [
            {
                "text": "–" if value is None else write(value),
                "share": 0.0 if value is None else max(value, 0.0) / largest,
            }
            for value in values
        ],
    }
