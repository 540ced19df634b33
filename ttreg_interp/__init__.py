"""Register neurons, test-time registers and attention sinks under TransformerLens hook points.

The names below are the whole surface; each is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ttreg_interp._version import __version__

if TYPE_CHECKING:
    from ttreg_interp.data.images import images
    from ttreg_interp.data.open import open_data
    from ttreg_interp.deploy.bake import bake
    from ttreg_interp.deploy.export import export, to_onnx
    from ttreg_interp.deploy.pretrained import from_pretrained, save_pretrained
    from ttreg_interp.discovery import (
        FindConfig,
        OutlierReport,
        RegisterNeurons,
        find_outliers,
        find_register_neurons,
    )
    from ttreg_interp.discovery.sink_neurons import find_sink_neurons
    from ttreg_interp.errors import TTRegError
    from ttreg_interp.evaluations.arms import standard_arms
    from ttreg_interp.evaluations.run import evaluate
    from ttreg_interp.hooked import HookedLM, HookedViT, TextLayout, TokenLayout, load, verify
    from ttreg_interp.interventions import (
        Empty,
        ExtraTokens,
        Intervention,
        NeuronSet,
        TestTimeRegister,
        ZeroNeurons,
    )
    from ttreg_interp.metrics.causal import causal_table
    from ttreg_interp.metrics.compare import compare
    from ttreg_interp.metrics.language import language_loss
    from ttreg_interp.metrics.massive_activations import massive_activations
    from ttreg_interp.metrics.sinks import attention_sinks
    from ttreg_interp.metrics.trace import Effect, measure_effect, trace
    from ttreg_interp.theory.attention_bias import fit_attention_bias
    from ttreg_interp.theory.sinks import noop_measures

_HOME = {
    # a real model under hook points
    "load": "hooked",
    "verify": "hooked",
    "HookedViT": "hooked",
    "HookedLM": "hooked",
    "TokenLayout": "hooked",
    "TextLayout": "hooked",
    # what may be done to a forward pass
    "Intervention": "interventions",
    "Empty": "interventions",
    "TestTimeRegister": "interventions",
    "ExtraTokens": "interventions",
    "ZeroNeurons": "interventions",
    "NeuronSet": "interventions",
    # which neurons make the outliers
    "find_outliers": "discovery",
    "find_register_neurons": "discovery",
    "find_sink_neurons": "discovery.sink_neurons",
    "FindConfig": "discovery",
    "RegisterNeurons": "discovery",
    "OutlierReport": "discovery",
    # numbers
    "trace": "metrics.trace",
    "measure_effect": "metrics.trace",
    "Effect": "metrics.trace",
    "compare": "metrics.compare",
    "causal_table": "metrics.causal",
    "massive_activations": "metrics.massive_activations",
    "attention_sinks": "metrics.sinks",
    "language_loss": "metrics.language",
    # the mechanism
    "fit_attention_bias": "theory.attention_bias",
    "noop_measures": "theory.sinks",
    # out of this package
    "bake": "deploy.bake",
    "export": "deploy.export",
    "to_onnx": "deploy.export",
    "save_pretrained": "deploy.pretrained",
    "from_pretrained": "deploy.pretrained",
    # data
    "images": "data.images",
    "open_data": "data.open",
    # what a register is worth downstream
    "evaluate": "evaluations.run",
    "standard_arms": "evaluations.arms",
    # errors
    "TTRegError": "errors",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604  (all are strings)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ttreg_interp' has no attribute {name!r}; it has {__all__}")
    value = getattr(import_module(f"ttreg_interp.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
