"""How two lists of neurons agree, and which published lists are of a model."""

from dataclasses import asdict, dataclass
from typing import Any

from ttreg_interp.discovery.published import published_lists, read_published
from ttreg_interp.discovery.register_neurons import RegisterNeurons
from ttreg_interp.interventions.neuron_set import NeuronSet

_NAMES = {
    "dinov2_vitl14": ("dinov2_vitl14", "dinov2-large", "vit_large_patch14_dinov2"),
    "dinov2_vitb14": ("dinov2_vitb14", "dinov2-base", "vit_base_patch14_dinov2"),
    "dinov2_vits14": ("dinov2_vits14", "dinov2-small", "vit_small_patch14_dinov2"),
    "openclip_vitb16": ("laion2b_s34b_b88k", "clip-vit-b-16-laion2b", "patch16_clip_224.laion2b"),
    "openai_clip_vitb16": ("vit-b-16/openai", "clip-vit-base-patch16", "patch16_clip_224.openai"),
    "siglip2_base": (
        "siglip2-base-patch16-256",
        "vit-b-16-siglip2-256",
        "base_patch16_siglip_256.v2",
    ),
    "siglip2_so400m": ("siglip2-so400m", "siglip2-so400m", "so400m_patch14_siglip"),
}
"""How the specs of a model may name what a published list is of."""


@dataclass(frozen=True)
class Agreement:
    """Two lists of neurons, compared."""

    shared: int
    """Neurons in both."""
    only_first: int
    """Neurons of the first alone."""
    only_second: int
    """Neurons of the second alone."""
    jaccard: float
    """Shared over all."""
    by_layer: dict[int, tuple[int, int, int]]
    """Layer -> shared, only first, only second."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"shared {self.shared}, only first {self.only_first}, only second {self.only_second} "
            f"(Jaccard {self.jaccard:.2f})"
        ]
        lines += [
            f"  layer {layer:3d}: shared {shared}, only first {first}, only second {second}"
            for layer, (shared, first, second) in self.by_layer.items()
        ]
        return "\n".join(lines)


def compare_neurons(first: Any, second: Any) -> Agreement:
    """Compare two lists of neurons.

    Args:
        first, second: RegisterNeurons, NeuronSets, or mappings {layer: [neuron, ...]}.

    Example:
        >>> compare_neurons({5: [1, 2]}, {5: [2], 6: [3]}).by_layer
        {5: (1, 1, 0), 6: (0, 0, 1)}
    """
    a, b = set(NeuronSet.of(first)), set(NeuronSet.of(second))
    layers = sorted({layer for layer, _ in a | b})
    by_layer = {
        layer: tuple(sum(pair[0] == layer for pair in part) for part in (a & b, a - b, b - a))
        for layer in layers
    }
    union = len(a | b)
    return Agreement(
        len(a & b),
        len(a - b),
        len(b - a),
        len(a & b) / union if union else 1.0,
        by_layer,  # type: ignore[arg-type]
    )


def lists_for(model: Any) -> dict[str, RegisterNeurons]:
    """The published lists of this model, told by its spec; none for an unnamed or random one."""
    spec = model.cfg.model_name.lower()
    if "random" in spec or "reg4" in spec or "with-registers" in spec or "_reg" in spec:
        return {}
    return {
        name: read_published(name)
        for name in published_lists()
        if any(word in spec for word in _words(name))
    }


def _words(name: str) -> tuple[str, ...]:
    return next((words for key, words in _NAMES.items() if name.startswith(key)), ())


def published_agreement(model: Any, neurons: NeuronSet) -> dict[str, Any]:
    """Agreement with every published list of this model."""
    return {
        name: compare_neurons(neurons, published).to_dict()
        for name, published in lists_for(model).items()
    }
