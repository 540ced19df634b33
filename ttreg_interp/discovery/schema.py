"""The documents that hold register neurons: ours and the published ones, read into plain fields."""

from typing import Any

from ttreg_interp.errors import ArtifactError, InterventionError
from ttreg_interp.interventions.neuron_set import NeuronSet

READABLE = ("register-neurons/1", "register-neuron-ranking/1")


def parse(body: Any, where: str) -> dict[str, Any]:
    """Fields of a RegisterNeurons from a document.

    Raises:
        ArtifactError: another schema, or a damaged document; says what is wrong with which key.
    """
    schema = body.get("schema") if isinstance(body, dict) else None
    if schema not in READABLE:
        raise ArtifactError(f"{where} has schema {schema!r}; readable are {', '.join(READABLE)}.")
    try:
        ranking = _ranking(body)
        neurons = _neurons(body, ranking)
        size = body.get("image_size")
        return {
            "neurons": neurons,
            "ranking": ranking,
            "threshold": _number(body.get("threshold")),
            "detect_layer": body.get("detect_layer"),
            "emerges_at": body.get("emerges_at"),
            "model": str(body.get("model", "")),
            "weights_hash": body.get("weights_hash"),
            "image_size": None if size is None else (int(size[0]), int(size[1])),
            "architecture": _architecture(body.get("architecture") or {}),
            "provenance": body.get("provenance") or _foreign(body),
            "evidence": body.get("evidence") or {},
            "caveats": tuple(body.get("caveats", ())),
        }
    except (KeyError, IndexError, TypeError, ValueError, InterventionError) as error:
        raise ArtifactError(f"{where} is damaged: {type(error).__name__}: {error}.") from None


def _ranking(body: dict[str, Any]) -> tuple[tuple[int, int, float], ...]:
    return tuple((int(row[0]), int(row[1]), float(row[2])) for row in body.get("ranking", ()))


def _neurons(body: dict[str, Any], ranking: tuple) -> NeuronSet:
    if "layer_to_neurons" in body:
        return NeuronSet.of(body["layer_to_neurons"])
    if "named" in body:
        return NeuronSet.of(
            [pair for key, value in body["named"].items() for pair in _named(key, value)]
        )
    return NeuronSet.of([row[:2] for row in ranking])


def _named(key: str, value: Any) -> list[tuple[int, int]]:
    """Neurons of one figure of the paper; controls and residual dimensions are no register neurons."""
    if isinstance(value, dict):
        return [pair for layer, items in value.items() for pair in _named(layer, items)]
    if "random" in key or "dims" in key:
        return []
    layer = int(key.removeprefix("layer").split("_")[0])
    return [(layer, int(neuron)) for neuron in value]


def _number(value: Any) -> float | None:
    """A threshold; some published lists give it in words, which stay in the provenance."""
    return float(value) if isinstance(value, (int, float)) else None


def _architecture(body: dict[str, Any]) -> dict[str, int]:
    return {key: value for key, value in body.items() if isinstance(value, int)}


def _foreign(body: dict[str, Any]) -> dict[str, Any]:
    """What a list made elsewhere says of itself."""
    known = {"schema", "model", "layer_to_neurons", "ranking", "caveats", "architecture", "named"}
    return {key: value for key, value in body.items() if key not in known}
