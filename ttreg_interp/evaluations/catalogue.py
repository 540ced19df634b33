"""Every evaluation by the name that the command line and the paper's list use."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

from ttreg_interp.errors import DataError
from ttreg_interp.evaluations.base import Evaluation

EVALUATIONS = {
    "classification": "classification.Classification",
    "zero-shot": "classification.ZeroShot",
    "lost": "lost.ObjectDiscovery",
    "attention-segmentation": "maps.AttentionSegmentation",
    "linear-probe": "probes.LinearProbe",
    "knn": "probes.NearestNeighbours",
    "segmentation-probe": "dense.SegmentationProbe",
    "depth-probe": "dense.DepthProbe",
    "typographic": "typographic.TypographicAttack",
}
"""Name -> class."""


def evaluation_of(name: str, options: Mapping[str, Any] | None = None) -> Evaluation:
    """An evaluation by name, some of its fields set.

    Args:
        name: one of `EVALUATIONS`.
        options: fields by name; those of a nested configuration as `outer.inner`.

    Raises:
        DataError: no such evaluation or field; lists those there are.

    Example:
        >>> evaluation_of("lost", {"biases": [0.0], "k": 50}).k
        50
    """
    if name not in EVALUATIONS:
        raise DataError(f"No evaluation {name!r}. There are {', '.join(EVALUATIONS)}.")
    module, cls = EVALUATIONS[name].split(".")
    kind = getattr(import_module(f"ttreg_interp.evaluations.{module}"), cls)
    return _configured(kind, dict(options or {}))


def _configured(kind: Any, options: dict[str, Any]) -> Any:
    known = {one.name: one for one in fields(kind)}
    given: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for key, value in options.items():
        outer, dot, inner = key.partition(".")
        if outer not in known:
            raise DataError(f"{kind.__name__} has no field {outer!r}; it has {', '.join(known)}.")
        if dot:
            nested.setdefault(outer, {})[inner] = value
        else:
            given[outer] = tuple(value) if isinstance(value, list) else value
    for outer, inner in nested.items():
        default: Any = known[outer].default
        if not is_dataclass(default):
            raise DataError(f"{kind.__name__}.{outer} has no fields of its own.")
        given[outer] = _configured(type(default), inner)
    return kind(**given)


def options_of(words: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` words, values read as JSON where they are, else as text.

    Raises:
        DataError: a word without '='.

    Example:
        >>> options_of(["k=50", "biases=[0, -0.5]", "fit=pad"])
        {'k': 50, 'biases': [0, -0.5], 'fit': 'pad'}
    """
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise DataError(f"{word!r} is not KEY=VALUE.")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found
