"""Other tools on the same weights and batch; one that is not installed is left out by name."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from benchmarks.models import Size, source
from benchmarks.timing import Work
from ttreg_interp.backends.importing import import_nnsight


def peers(size: Size, pixels: Tensor) -> dict[str, Work]:
    """Arms of all peers that are at hand."""
    makers: dict[str, Callable[[Size, Tensor], dict[str, Work]]] = {
        "torch": plain_hooks,
        "transformer_lens": bridge,
        "nnsight": traced,
    }
    arms: dict[str, Work] = {}
    for package, make in makers.items():
        if find_spec(package) is not None:
            arms |= make(size, pixels)
    return arms


def plain_hooks(size: Size, pixels: Tensor) -> dict[str, Work]:
    """PyTorch's own forward hooks, keeping all neurons."""
    model = source(size)
    kept: dict[str, Tensor] = {}

    def work() -> dict[str, Tensor]:
        handles = [
            module.register_forward_hook(lambda m, i, out, name=name: kept.update({name: out}))
            for name, module in mlp_activations(model)
        ]
        try:
            model(pixels)
        finally:
            for handle in handles:
                handle.remove()
        return kept

    return {"PyTorch hooks, all neurons": work}


def mlp_activations(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The activation functions of the MLPs, whose output is the neurons."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if name.endswith(("activation_fn", "intermediate_act_fn", "mlp.act"))
    ]


def bridge(size: Size, pixels: Tensor) -> dict[str, Work]:
    """TransformerLens' TransformerBridge, which takes eager attention on ViTs."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    module: Any = source(size, attention="eager")
    model = build_bridge_from_module(module, "ViTForImageClassification", hf_config=module.config)

    def cached(names_filter: Any) -> Work:
        return lambda: model.run_with_cache(pixels, names_filter=names_filter)

    neurons = [name for name in model.hook_dict if name.endswith("mlp.hook_post")]
    return {
        "TransformerBridge": lambda: model(pixels),
        "TransformerBridge, all neurons": cached(neurons),
        "TransformerBridge, everything": cached(None),
    }


def traced(size: Size, pixels: Tensor) -> dict[str, Work]:
    """nnsight, saving all neurons."""
    nnsight = import_nnsight()
    module = source(size)
    model = nnsight.NNsight(module)
    places = [name for name, _ in mlp_activations(module)]

    def work() -> dict[str, Tensor]:
        kept: dict[str, Tensor] = {}
        with model.trace(pixels):
            for name in places:
                kept[name] = nnsight.save(model.get(name).output)
        return kept

    return {"nnsight, all neurons": work}
