"""Values that change a forward pass, and compose."""

from ttreg_interp.interventions.base import Empty, Intervention, Sequence
from ttreg_interp.interventions.neuron_set import NeuronSet
from ttreg_interp.interventions.neurons import ZeroNeurons
from ttreg_interp.interventions.registers import ExtraTokens, TestTimeRegister

__all__ = [
    "Empty",
    "ExtraTokens",
    "Intervention",
    "NeuronSet",
    "Sequence",
    "TestTimeRegister",
    "ZeroNeurons",
]
