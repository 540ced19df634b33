"""One example of every kind of intervention, made for a layout of the token axis."""

from collections.abc import Callable

import torch

from ttreg_interp.interventions import (
    AblateHeads,
    AttentionBias,
    Boxes,
    ClippedSoftmax,
    CopyRegisterValuesTo,
    DeleteTokens,
    ExtraTokens,
    GateHeads,
    Intervention,
    KeepTokens,
    KnockoutAttention,
    LargestNorms,
    Mask,
    MaskTokens,
    MeanNeurons,
    MoveNeurons,
    NeuronSet,
    NoiseNeurons,
    Outliers,
    Part,
    PatchActivation,
    RandomPatches,
    ReplacePattern,
    ResampleNeurons,
    ScaleNeurons,
    SetMassiveActivations,
    Shape,
    ShuffleNeurons,
    SoftmaxOffByOne,
    TestTimeRegister,
    TrainedRegisters,
    ZeroNeurons,
)

from .models import D_MLP, D_MODEL, GRID, N_HEADS, N_LAYERS, n_prefix

NEURONS = NeuronSet.of({0: [3, 50], 1: [7, 20, 90]})
OTHERS = NEURONS.matched_random(seed=0, d_mlp=D_MLP)


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _pattern(layout: str) -> torch.Tensor:
    n_tokens = n_prefix(layout) + GRID**2
    return _noise(1, 1, n_tokens, n_tokens).softmax(-1)


Example = Callable[[str], Intervention]

ANYWHERE: dict[str, Example] = {
    "zeroed neurons": lambda layout: ZeroNeurons(NEURONS),
    "neurons zeroed on patches": lambda layout: ZeroNeurons(NEURONS, tokens="patches"),
    "neurons zeroed on outliers": lambda layout: ZeroNeurons(
        {1: [7, 20, 90]}, tokens=Outliers(threshold=24.5, layer=0)
    ),
    "neurons at their stored mean": lambda layout: MeanNeurons(NEURONS, _noise(5)),
    "neurons at the image's mean": lambda layout: MeanNeurons(NEURONS),
    "resampled neurons": lambda layout: ResampleNeurons(NEURONS, _noise(4, 5)),
    "shuffled neurons": lambda layout: ShuffleNeurons(NEURONS, seed=1),
    "noise in neurons": lambda layout: NoiseNeurons(NEURONS, seed=1),
    "noise added to neurons": lambda layout: NoiseNeurons(NEURONS, 2.0, "add"),
    "scaled neurons": lambda layout: ScaleNeurons(NEURONS, 3.0),
    "neurons moved to a heart": lambda layout: MoveNeurons(NEURONS, Shape("heart")),
    "neurons moved to positions": lambda layout: MoveNeurons(NEURONS, ((0, 0), (3, 2)), "mean"),
    "neurons moved to random patches": lambda layout: MoveNeurons(
        NEURONS, RandomPatches(3, seed=0), "same", scale=2.0, search="patches"
    ),
    "values copied to other neurons": lambda layout: CopyRegisterValuesTo(NEURONS, OTHERS),
    "strongest values copied to other neurons": lambda layout: CopyRegisterValuesTo(
        NEURONS, OTHERS, to=(0, 5)
    ),
    "a patched residual": lambda layout: PatchActivation(
        "blocks.1.hook_resid_post", _noise(D_MODEL), tokens="patches"
    ),
    "a patched head": lambda layout: PatchActivation(
        "blocks.0.attn.hook_z", _noise(1, 1, N_HEADS, D_MODEL // N_HEADS), heads=(1,)
    ),
    "patched dimensions": lambda layout: PatchActivation(
        "blocks.1.hook_mlp_out", torch.tensor(4.0), Mask(torch.eye(GRID) > 0), dims=(0, 9)
    ),
    "ablated heads": lambda layout: AblateHeads({0: [1], 1: [0]}),
    "heads at their mean": lambda layout: AblateHeads({0: [1], 1: [0]}, "mean", tokens="patches"),
    "massive activations set": lambda layout: SetMassiveActivations(
        1, (2, 5), (0.0, 30.0), "patches"
    ),
    "massive activations set where large": lambda layout: SetMassiveActivations(
        0, (2, 5), (0.0, 30.0), threshold=0.5
    ),
    "an attention bias": lambda layout: AttentionBias(
        _noise(N_LAYERS, N_HEADS, D_MODEL // N_HEADS),
        _noise(N_LAYERS, N_HEADS, D_MODEL // N_HEADS, seed=1),
        copies=3.0,
    ),
    "an attention bias in one layer": lambda layout: AttentionBias(
        _noise(1, N_HEADS, D_MODEL // N_HEADS), _noise(1, N_HEADS, D_MODEL // N_HEADS), (1,)
    ),
    "softmax off by one": lambda layout: SoftmaxOffByOne(),
    "attention cut": lambda layout: KnockoutAttention((0,), (1, 2, 3), heads=(1,)),
    "attention cut, not renormalised": lambda layout: KnockoutAttention(
        "all", Boxes(((0, 0, 12, 20),)), layers=(0, 1), renormalise=False
    ),
    "a written pattern": lambda layout: ReplacePattern(1, _pattern(layout), heads=(0,)),
    "a clipped softmax": lambda layout: ClippedSoftmax(alpha=1.0),
    "gated heads": lambda layout: GateHeads(
        _noise(N_LAYERS, N_HEADS, D_MODEL), _noise(N_LAYERS, N_HEADS)
    ),
    "hidden patches": lambda layout: MaskTokens(((0, 0), (1, 1)), from_layer=1),
    "few patches kept": lambda layout: KeepTokens(LargestNorms(5, layer=0), from_layer=1),
}
"""Kinds that keep the length of the token axis, on every layout."""

REGISTERS: dict[str, Example] = {
    "an extra token": lambda layout: ExtraTokens(),
    "extra tokens": lambda layout: ExtraTokens(2, "patch_gaussian", 1, copies=2.0),
    "a test-time register": lambda layout: TestTimeRegister(NEURONS),
    "three test-time registers": lambda layout: TestTimeRegister(
        NEURONS, 3, init="patch_mean", search="patches", scale=(1.0, 2.0, 0.5)
    ),
    "registers by outlier rank": lambda layout: TestTimeRegister(
        NEURONS, 2, assign="outlier_rank", fill="mean", visible_from_layer=1
    ),
    "a register as in the reference": lambda layout: TestTimeRegister(
        NEURONS, 2, "reference", fill="only_outliers", multiplicity=4.0
    ),
}
"""Kinds that add rows to the token axis, on every layout."""

HERE_AND_THERE: dict[str, Example] = {
    "trained registers dropped": lambda layout: TrainedRegisters("dropped"),
    "trained registers at their mean": lambda layout: TrainedRegisters(
        "mean", _noise(2, 4, D_MODEL), from_layer=1
    ),
    "trained registers merged": lambda layout: TrainedRegisters("synthetic", from_layer=1),
    "deleted patches": lambda layout: DeleteTokens(LargestNorms(3, layer=0, norm="max"), 1),
    "patches deleted, their rows kept": lambda layout: DeleteTokens(
        Part("patches") & Mask(torch.eye(GRID) > 0), 1, "last"
    ),
}
"""Kinds that need trained registers, or a model that does not rotate."""

EXAMPLES = {**ANYWHERE, **REGISTERS, **HERE_AND_THERE}


def fits(example: str, layout: str) -> bool:
    """Whether the example can be applied to models of the layout."""
    if example.startswith("trained registers"):
        return layout in ("timm with 4 trained registers", "timm Eva with rotation")
    return "deleted" not in example or layout != "timm Eva with rotation"
