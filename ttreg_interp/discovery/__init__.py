"""Which neurons make the outliers: found from many images, with evidence beside the list."""

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

__all__ = [
    "Agreement",
    "AttentionArtefactReport",
    "FindConfig",
    "LayerNorms",
    "NeuronScores",
    "OutlierReport",
    "RegisterNeurons",
    "Shard",
    "compare_neurons",
    "find_attention_artefacts",
    "find_outliers",
    "find_register_neurons",
    "merge",
    "published_lists",
    "score_shard",
    "torchrun",
]
