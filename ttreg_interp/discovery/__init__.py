"""Which neurons make the outliers: found from many images, with evidence beside the list.

Each name is loaded when it is first used, so that the command line can read the flags of
`FindConfig` without a model library.
"""

# ruff: noqa: F401  (names for type checkers only)

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ttreg_interp.discovery.agreement import Agreement, compare_neurons
    from ttreg_interp.discovery.attention_artefacts import (
        AttentionArtefactReport,
        find_attention_artefacts,
    )
    from ttreg_interp.discovery.checkpoint import Shard, merge
    from ttreg_interp.discovery.config import FindConfig
    from ttreg_interp.discovery.distributed import torchrun
    from ttreg_interp.discovery.find import find_register_neurons
    from ttreg_interp.discovery.outliers import LayerNorms, OutlierReport, find_outliers
    from ttreg_interp.discovery.published import published_lists
    from ttreg_interp.discovery.register_neurons import RegisterNeurons
    from ttreg_interp.discovery.scores import NeuronScores
    from ttreg_interp.discovery.scoring import score_shard

_HOME = {
    "Agreement": "agreement",
    "AttentionArtefactReport": "attention_artefacts",
    "FindConfig": "config",
    "LayerNorms": "outliers",
    "NeuronScores": "scores",
    "OutlierReport": "outliers",
    "RegisterNeurons": "register_neurons",
    "Shard": "checkpoint",
    "compare_neurons": "agreement",
    "find_attention_artefacts": "attention_artefacts",
    "find_outliers": "outliers",
    "find_register_neurons": "find",
    "merge": "checkpoint",
    "published_lists": "published",
    "score_shard": "scoring",
    "torchrun": "distributed",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {[*_HOME]}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
