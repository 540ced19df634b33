"""What does not fit is refused on entry, and the message says what does."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from ttreg_interp.errors import InterventionError
from ttreg_interp.interventions import (
    AblateHeads,
    AttentionBias,
    ClippedSoftmax,
    CopyRegisterValuesTo,
    ExtraTokens,
    GateHeads,
    KnockoutAttention,
    MaskTokens,
    MeanNeurons,
    MoveNeurons,
    NoiseNeurons,
    PatchActivation,
    ReplacePattern,
    ResampleNeurons,
    ScaleNeurons,
    SetMassiveActivations,
    ShuffleNeurons,
    SoftmaxOffByOne,
    TestTimeRegister,
    ZeroNeurons,
)

from .laws import as_users_run, n_hooks, run
from .models import D_MODEL, LAYOUTS, N_HEADS, images, model

LAYOUT = "timm with [CLS]"
HEADS = torch.zeros(3, 2, 16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ZeroNeurons({}), "ZeroNeurons without neurons: use Empty"),
        (lambda: TestTimeRegister({}), "no identity.*use Empty|Empty.*ExtraTokens"),
        (lambda: MoveNeurons({}, "cls"), "MoveNeurons without neurons"),
        (lambda: TestTimeRegister({1: [7]}, 2, scale=(1.0,)), "1 scales for 2 registers"),
        (lambda: TestTimeRegister({1: [7]}, semantics="theirs"), "'theirs' is unknown; .*'paper'"),
        (
            lambda: TestTimeRegister({1: [7]}, assign="any"),
            "assign='any' is unknown.*'outlier_rank'",
        ),
        (lambda: TestTimeRegister({1: [7]}, fill="noise"), "fill='noise' is unknown"),
        (lambda: TestTimeRegister({1: [7]}, multiplicity=0.0), "copies > 0"),
        (lambda: ExtraTokens(0), "n_tokens must be >= 1"),
        (lambda: ExtraTokens(init="ones"), "init='ones' is unknown.*'patch_mean'"),
        (
            lambda: MeanNeurons({1: [7]}, torch.zeros(2)),
            r"shape \[2\], expected \[selected\] with 1",
        ),
        (
            lambda: ResampleNeurons({1: [7]}, torch.zeros(3)),
            r"expected \[sample, selected\] with 1",
        ),
        (lambda: CopyRegisterValuesTo({1: [7]}, {0: [3]}), "matched_random"),
        (lambda: CopyRegisterValuesTo({1: [7]}, {1: [7]}), "1 in both"),
        (lambda: AttentionBias(HEADS, HEADS[:2]), r"\[3, 2, 16\], v' \[2, 2, 16\]"),
        (lambda: AttentionBias(HEADS[0], HEADS[0]), r"both are \[layer, head, d_head\]"),
        (lambda: AttentionBias(HEADS, HEADS, (0, 1)), "with 2 layers as in layers="),
        (lambda: AttentionBias(HEADS, HEADS, copies=0.0), "more than 0 keys"),
        (lambda: SoftmaxOffByOne(-1.0), "more than 0 is added"),
        (lambda: ClippedSoftmax(gamma=0.1), "gamma must be <= 0"),
        (lambda: ClippedSoftmax(gamma=-0.1, alpha=1.0), "only one of gamma and alpha"),
        (lambda: ReplacePattern(0, torch.zeros(17, 17)), r"pattern\[None, None\]"),
        (lambda: AblateHeads({}), "Heads are a mapping"),
        (lambda: AblateHeads(3), "Heads are a mapping"),
        (lambda: AblateHeads({0: [1]}, "noise"), "to='noise' is unknown"),
        (lambda: SetMassiveActivations(0, (1, 2), (0.0,)), "1 values for 2 dimensions"),
        (
            lambda: PatchActivation("blocks.0.hook_resid_mid", HEADS, heads=(0,)),
            "has no head axis; heads are told apart at hook_q",
        ),
        (lambda: PatchActivation("hook_pooled", HEADS, "cls"), "has no token axis"),
        (
            lambda: PatchActivation("blocks.0.attn.hook_pattern", HEADS, "cls"),
            "hook_pattern has no token axis.*ReplacePattern",
        ),
    ],
)
def test_values_that_mean_nothing(make, message):
    with as_users_run(), pytest.raises(InterventionError, match=message):
        make()


@pytest.mark.parametrize(
    ("intervention", "message"),
    [
        (ZeroNeurons({3: [0]}), "Layer 3, neuron 0 is not in VisionTransformer: .*layers 0 to 2"),
        (TestTimeRegister({1: [128]}), "neuron 128 is not in .*neurons 0 to 127.*another model"),
        (MoveNeurons({1: [128]}, "cls"), "neurons 0 to 127"),
        (TestTimeRegister({1: [7]}, visible_from_layer=4), "has 3 blocks, so 0 to 3 are possible"),
        (MaskTokens("cls", from_layer=3), "Layer 3 is not in .*layers 0 to 2"),
        (AblateHeads({0: [2]}), "Head 2 is not in .*heads 0 to 1"),
        (KnockoutAttention("cls", "patches", heads=(5,)), "Head 5 is not in"),
        (SoftmaxOffByOne(layers=(7,)), "Layer 7 is not in"),
        (AttentionBias(HEADS[:2], HEADS[:2]), r"\[2, 2, 16\].*takes \[3, 2, 16\].*layers=\(...\)"),
        (AttentionBias(HEADS.view(3, 4, 8), HEADS.view(3, 4, 8)), "Are they of another model"),
        (GateHeads(HEADS, HEADS[..., 0]), r"takes \[3, 2, 32\] and \[3, 2\]"),
        (
            SetMassiveActivations(0, (32,), (0.0,)),
            "Dimension 32 is not in .* has 32, counted from 0",
        ),
        (
            PatchActivation("blocks.0.resid_mid", HEADS),
            "no hook point 'blocks.0.resid_mid'; near it",
        ),
        (
            PatchActivation("blocks.0.hook_resid_mid", torch.zeros(1, 18, D_MODEL)),
            r"\[1, 18, 32\] do not fit blocks.0.hook_resid_mid of shape \[2, 17, 32\].*registers count",
        ),
        (
            PatchActivation("blocks.0.hook_resid_mid", torch.zeros(1, 2, 17, D_MODEL)),
            "do not fit blocks.0.hook_resid_mid",
        ),
        (
            PatchActivation("blocks.0.attn.hook_z", torch.zeros(16), dims=(16,)),
            "Dimension 16 is not in blocks.0.attn.hook_z: its last axis has 16",
        ),
        (ReplacePattern(0, torch.ones(1, 3, 17, 17)), r"float32\[1, 3, 17, 17\].*\[2, 2, 17, 17\]"),
        (
            MoveNeurons({1: [7]}, "test_time_registers"),
            r"has no test time registers.*ExtraTokens\(\)",
        ),
        (ZeroNeurons({1: [7]}, tokens="trained_registers"), "has no trained registers.*'patches'"),
    ],
)
def test_values_that_do_not_fit_the_model(intervention, message):
    with pytest.raises(InterventionError, match=message):
        run(LAYOUT, images(2), intervention)
    assert n_hooks(LAYOUT) == 0
    assert model(LAYOUT).n_added_tokens == 0


@pytest.mark.parametrize(
    "eraser",
    [
        ZeroNeurons({0: [3], 1: [7]}),
        MeanNeurons({1: [7, 8]}),
        NoiseNeurons({1: [7]}),
        ScaleNeurons({1: [7]}, 0.0),
        CopyRegisterValuesTo({1: [8]}, {1: [7]}),
    ],
)
@pytest.mark.parametrize("mover", [TestTimeRegister({1: [7, 9]}), MoveNeurons({1: [7]}, "patches")])
def test_neurons_are_not_both_moved_and_overwritten(mover, eraser):
    """In no order, and not hidden in a composition."""
    for first, then in ((mover, eraser), (eraser, mover)):
        with pytest.raises(InterventionError, match="layer 1: 7, which .*overwrites on all tokens"):
            first + then
        with pytest.raises(InterventionError, match="nothing would be moved"):
            ExtraTokens() + (ZeroNeurons({2: [5]}) + first) + then
        with pytest.raises(InterventionError), model(LAYOUT).intervened(first, then):
            pass


@pytest.mark.parametrize(
    "edit",
    [
        ZeroNeurons({1: [8]}),
        ZeroNeurons({1: [7]}, tokens="patches"),
        ScaleNeurons({1: [7]}, 2.0),
        NoiseNeurons({1: [7]}, 0.1, "add"),
    ],
)
def test_edits_that_leave_something_to_move_are_allowed(edit):
    run(LAYOUT, images(1), edit + TestTimeRegister({1: [7]}))
    run(LAYOUT, images(1), TestTimeRegister({1: [7]}) + edit)


def test_a_model_without_cls_says_so():
    layout = next(name for name in LAYOUTS if "without" in name)
    with pytest.raises(InterventionError, match=r"has no cls: .*0 \[CLS\].*16 patches.*'patches'"):
        run(layout, images(1), KnockoutAttention("cls", "patches"))


class Block(nn.Module):
    """An MLP block with TransformerLens' hook points."""

    def __init__(self):
        super().__init__()
        self.hook_resid_post, self.mlp = HookPoint(), nn.Module()
        self.mlp.hook_post = HookPoint()
        self.fc1, self.fc2 = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x):
        return self.hook_resid_post(x + self.fc2(self.mlp.hook_post(self.fc1(x).relu())))


class LanguageModel(HookedRootModule):
    """Any model of TransformerLens: it has hook points and a cfg, but no token layout."""

    cfg = SimpleNamespace(n_layers=2, d_mlp=64, n_heads=2, d_model=16, model_name="tiny LM")

    def __init__(self):
        super().__init__()
        self.embed, self.unembed = nn.Embedding(9, 16), nn.Linear(16, 9)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.setup()

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.unembed(x)


@pytest.mark.parametrize(
    "intervention",
    [
        ZeroNeurons({0: [3], 1: [7]}),
        ShuffleNeurons({0: [3, 9], 1: [7]}),
        MoveNeurons({0: [3, 9, 10, 11]}, to=(0,)),
        PatchActivation("blocks.0.hook_resid_post", torch.zeros(16), tokens=(2,)),
        SetMassiveActivations(0, (3,), (9.0,), tokens=(0, 1)),
    ],
)
def test_a_model_without_a_layout_takes_what_needs_none(intervention):
    """Rows are named by number there; hook names and shapes are the same."""
    language_model, tokens = LanguageModel(), torch.arange(5)[None]
    with torch.no_grad():
        plain = language_model(tokens)
        edited = language_model.run_with_hooks(
            tokens, fwd_hooks=intervention.fwd_hooks(language_model)
        )
    assert not torch.allclose(edited, plain, atol=1e-5)


@pytest.mark.parametrize(
    "intervention", [ExtraTokens(), TestTimeRegister({0: [3]}), ZeroNeurons({0: [3]}, tokens="cls")]
)
def test_what_needs_a_layout_says_so(intervention):
    with pytest.raises(InterventionError, match=r"has no token layout.*Rows\(\(0, 1, ...\)\)"):
        intervention.fwd_hooks(LanguageModel())


def test_a_bias_of_other_heads_is_told_the_right_shape():
    other = torch.zeros(3, 2 * N_HEADS, 16)
    with pytest.raises(InterventionError, match=r"takes \[3, 2, 16\]"):
        run(LAYOUT, images(1), AttentionBias(other, other))
