"""Values that change a forward pass, and compose."""

from ttreg_interp.interventions.activations import PatchActivation, SetMassiveActivations
from ttreg_interp.interventions.attention import AttentionBias, KnockoutAttention, SoftmaxOffByOne
from ttreg_interp.interventions.base import Empty, Intervention, Sequence
from ttreg_interp.interventions.measure import (
    calibrate_multiplicity,
    mean_activations,
    mean_attention_bias,
    mean_key_value,
    mean_neurons,
    mean_trained_registers,
    resample_neurons,
)
from ttreg_interp.interventions.move import CopyRegisterValuesTo, MoveNeurons
from ttreg_interp.interventions.neuron_set import NeuronSet
from ttreg_interp.interventions.neurons import (
    MeanNeurons,
    NoiseNeurons,
    ResampleNeurons,
    ScaleNeurons,
    ShuffleNeurons,
    ZeroNeurons,
)
from ttreg_interp.interventions.patterns import (
    AblateHeads,
    ClippedSoftmax,
    GateHeads,
    ReplacePattern,
)
from ttreg_interp.interventions.registers import ExtraTokens, TestTimeRegister
from ttreg_interp.interventions.selectors import (
    Boxes,
    LargestNorms,
    Mask,
    Outliers,
    Part,
    Positions,
    RandomPatches,
    Rows,
    Selector,
    Shape,
    select,
)
from ttreg_interp.interventions.tokens import DeleteTokens, KeepTokens, MaskTokens
from ttreg_interp.interventions.trained_registers import TrainedRegisters
from ttreg_interp.interventions.value import TensorValue

__all__ = [
    "AblateHeads",
    "AttentionBias",
    "Boxes",
    "ClippedSoftmax",
    "CopyRegisterValuesTo",
    "DeleteTokens",
    "Empty",
    "ExtraTokens",
    "GateHeads",
    "Intervention",
    "KeepTokens",
    "KnockoutAttention",
    "LargestNorms",
    "Mask",
    "MaskTokens",
    "MeanNeurons",
    "MoveNeurons",
    "NeuronSet",
    "NoiseNeurons",
    "Outliers",
    "Part",
    "PatchActivation",
    "Positions",
    "RandomPatches",
    "ReplacePattern",
    "ResampleNeurons",
    "Rows",
    "ScaleNeurons",
    "Selector",
    "Sequence",
    "SetMassiveActivations",
    "Shape",
    "ShuffleNeurons",
    "SoftmaxOffByOne",
    "TensorValue",
    "TestTimeRegister",
    "TrainedRegisters",
    "ZeroNeurons",
    "calibrate_multiplicity",
    "mean_activations",
    "mean_attention_bias",
    "mean_key_value",
    "mean_neurons",
    "mean_trained_registers",
    "resample_neurons",
    "select",
]
