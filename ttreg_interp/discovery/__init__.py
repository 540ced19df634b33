"""Which neurons make the outliers: found from many images, with evidence beside the list."""

from ttreg_interp.discovery.config import FindConfig
from ttreg_interp.discovery.find import find_register_neurons
from ttreg_interp.discovery.outliers import LayerNorms, OutlierReport, find_outliers
from ttreg_interp.discovery.published import published_lists
from ttreg_interp.discovery.register_neurons import RegisterNeurons

__all__ = [
    "FindConfig",
    "LayerNorms",
    "OutlierReport",
    "RegisterNeurons",
    "find_outliers",
    "find_register_neurons",
    "published_lists",
]
