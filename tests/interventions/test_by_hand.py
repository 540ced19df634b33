"""A vision transformer written out in plain torch, and interventions in it image by image.

Nothing of the package is used but the model's weights: if the two agree, hooks, layouts and kinds
mean what they say.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from ttreg_interp.interventions import (
    AblateHeads,
    AttentionBias,
    ClippedSoftmax,
    CopyRegisterValuesTo,
    ExtraTokens,
    Intervention,
    KnockoutAttention,
    MoveNeurons,
    Positions,
    ScaleNeurons,
    SetMassiveActivations,
    TestTimeRegister,
    TrainedRegisters,
    ZeroNeurons,
)

from .kinds import NEURONS
from .laws import run
from .models import D_MODEL, N_HEADS, N_LAYERS, images, model

LAYOUT = "timm with 4 trained registers"
N_PREFIX = 5
D_HEAD = D_MODEL // N_HEADS
OURS = NEURONS.by_layer()
K, V = torch.randn(2, N_LAYERS, N_HEADS, D_HEAD, generator=torch.Generator().manual_seed(0))


class ByHand:
    """The forward of one image, [token, d_model]; a subclass overrides what it changes."""

    def enter(self, x: Tensor) -> Tensor:
        """What enters block 0."""
        return x

    def attention(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[head, token, d_head] of each, to what the heads return."""
        return self.pattern(layer, q @ k.transpose(1, 2) / D_HEAD**0.5) @ v

    def pattern(self, layer: int, scores: Tensor) -> Tensor:
        """[head, query, key]."""
        return scores.softmax(dim=-1)

    def neurons(self, layer: int, post: Tensor) -> Tensor:
        """[token, neuron]; may be edited in place."""
        return post

    def leave(self, layer: int, x: Tensor) -> Tensor:
        """The residual stream after a block."""
        return x

    def __call__(self, pixels: Tensor) -> Tensor:
        """The logits."""
        vit = model(LAYOUT).source
        w = {name: value.detach() for name, value in vit.state_dict().items()}
        patches = torch.stack(
            [
                (w["patch_embed.proj.weight"] * pixels[:, i : i + 8, j : j + 8]).sum((1, 2, 3))
                for i in range(0, 32, 8)
                for j in range(0, 32, 8)
            ]
        )
        patches = patches + w["patch_embed.proj.bias"] + w["pos_embed"][0]
        x = self.enter(torch.cat((w["cls_token"][0], w["reg_token"][0], patches)))
        for layer in range(N_LAYERS):
            b = {k.split(".", 2)[2]: v for k, v in w.items() if k.startswith(f"blocks.{layer}.")}
            normed = layer_norm(x, (D_MODEL,), b["norm1.weight"], b["norm1.bias"], 1e-6)
            qkv = normed @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]
            q, k, v = qkv.view(len(x), 3, N_HEADS, D_HEAD).permute(1, 2, 0, 3)
            z = self.attention(layer, q, k, v).transpose(0, 1).flatten(1)
            x = x + (z @ b["attn.proj.weight"].T + b["attn.proj.bias"]) * b["ls1.gamma"]
            normed = layer_norm(x, (D_MODEL,), b["norm2.weight"], b["norm2.bias"], 1e-6)
            post = gelu(normed @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"])
            mlp = self.neurons(layer, post) @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
            x = self.leave(layer, x + mlp * b["ls2.gamma"])
        cls = layer_norm(x[0], (D_MODEL,), w["norm.weight"], w["norm.bias"], 1e-6)
        return cls @ w["head.weight"].T + w["head.bias"]


class WithRegister(ByHand):
    """One row of zeros behind the prefix, which takes the neurons' maxima."""

    def enter(self, x):
        return torch.cat((x[:N_PREFIX], torch.zeros(1, D_MODEL), x[N_PREFIX:]))

    def neurons(self, layer, post):
        for n in OURS.get(layer, ()):
            strongest = max(float(value) for value in post[:, n])
            post[:, n] = 0
            post[N_PREFIX, n] = strongest
        return post


class CountingAsFour(WithRegister):
    def pattern(self, layer, scores):
        weights = scores.exp()
        weights[..., N_PREFIX] *= 4
        return weights / weights.sum(dim=-1, keepdim=True)


class HiddenBeforeBlock2(WithRegister):
    def pattern(self, layer, scores):
        if layer < 2:
            scores[..., N_PREFIX] = -torch.inf
        return scores.softmax(dim=-1)


class TwoRegistersAsInTheReference(ByHand):
    def enter(self, x):
        return torch.cat((x[:N_PREFIX], torch.zeros(2, D_MODEL), x[N_PREFIX:]))

    def neurons(self, layer, post):
        if layer in OURS:
            ours = post[:, list(OURS[layer])]
            extreme = float(ours.flatten()[ours.abs().flatten().argmax()])
            ours[1:] = 0
            ours[N_PREFIX : N_PREFIX + 2] = extreme
            post[:, list(OURS[layer])] = ours
        return post


class WithoutTrainedRegisters(WithRegister):
    def pattern(self, layer, scores):
        if layer >= 1:
            scores[..., 1:N_PREFIX] = -torch.inf
        return scores.softmax(dim=-1)


class Biased(ByHand):
    """k' and v' in every head, counting as three keys, and the neurons zeroed."""

    def attention(self, layer, q, k, v):
        weights = (q @ k.transpose(1, 2) / D_HEAD**0.5).exp()
        extra = 3 * ((q * K[layer, :, None]).sum(-1, keepdim=True) / D_HEAD**0.5).exp()
        total = weights.sum(dim=-1, keepdim=True) + extra
        return (weights @ v + extra * V[layer, :, None]) / total

    def neurons(self, layer, post):
        post[:, list(OURS.get(layer, ()))] = 0
        return post


class Moved(ByHand):
    """Twice the maximum on the first and the last patch."""

    def neurons(self, layer, post):
        for n in OURS.get(layer, ()):
            strongest = 2 * post[:, n].max()
            post[:, n] = 0
            post[[N_PREFIX, N_PREFIX + 15], n] = strongest
        return post


class Copied(ByHand):
    def neurons(self, layer, post):
        if layer == 1:
            post[:, [1, 2, 3]] = post[:, [7, 20, 90]]
        return post


class Cut(ByHand):
    def pattern(self, layer, scores):
        pattern = scores.softmax(dim=-1)
        if layer == 1:
            pattern[1, 0, N_PREFIX:] = 0
        return pattern


class CutAndShared(Cut):
    def pattern(self, layer, scores):
        pattern = super().pattern(layer, scores)
        return pattern / pattern.sum(dim=-1, keepdim=True)


class Clipped(ByHand):
    def pattern(self, layer, scores):
        return (1.1 * scores.softmax(dim=-1) - 0.05).clamp(0, 1)


class WithoutAHead(ByHand):
    def attention(self, layer, q, k, v):
        z = super().attention(layer, q, k, v)
        if layer == 2:
            z[1] = 0
        return z


class Massive(ByHand):
    def leave(self, layer, x):
        if layer == 1:
            x[N_PREFIX:, 3] = 50
        return x


CASES: dict[str, tuple[Intervention, Callable[[], ByHand]]] = {
    "register": (TestTimeRegister(NEURONS), WithRegister),
    "register counting as four": (TestTimeRegister(NEURONS, multiplicity=4.0), CountingAsFour),
    "hidden register": (TestTimeRegister(NEURONS, visible_from_layer=2), HiddenBeforeBlock2),
    "reference": (TestTimeRegister(NEURONS, 2, "reference"), TwoRegistersAsInTheReference),
    "register in place of trained ones": (
        TestTimeRegister(NEURONS) + TrainedRegisters("dropped", from_layer=1),
        WithoutTrainedRegisters,
    ),
    "attention bias": (ZeroNeurons(NEURONS) + AttentionBias(K, V, copies=3.0), Biased),
    "moved": (MoveNeurons(NEURONS, ((0, 0), (3, 3)), scale=2.0), Moved),
    "copied": (CopyRegisterValuesTo({1: [7, 20, 90]}, {1: [1, 2, 3]}), Copied),
    "cut": (KnockoutAttention("cls", "patches", (1,), (1,), renormalise=False), Cut),
    "cut and shared": (KnockoutAttention("cls", "patches", (1,), (1,)), CutAndShared),
    "clipped": (ClippedSoftmax(gamma=-0.05, zeta=1.05), Clipped),
    "without a head": (AblateHeads({2: [1]}), WithoutAHead),
    "massive": (SetMassiveActivations(1, (3,), (50.0,), "patches"), Massive),
}


def close(found: Tensor, by_hand: ByHand, pixels: Tensor) -> None:
    """Every image of the batch is as computed by hand."""
    expected = torch.stack([by_hand(image) for image in pixels])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_plain_model_is_the_one_written_out():
    close(run(LAYOUT, images(3)), ByHand(), images(3))


@pytest.mark.parametrize("case", CASES)
def test_an_intervention_is_what_its_formula_says(case):
    intervention, by_hand = CASES[case]
    close(run(LAYOUT, images(3), intervention), by_hand(), images(3))


def test_an_added_token_of_zeros_is_a_row_of_zeros():
    class Longer(ByHand):
        enter = WithRegister.enter

    close(run(LAYOUT, images(2), ExtraTokens()), Longer(), images(2))


def test_every_image_has_targets_of_its_own_beside_registers():
    """The selector counts rows behind trained and test-time registers."""
    per_image = (((0, 1),), ((2, 0), (3, 3)))
    edit = TestTimeRegister({0: [3, 50]}) + ScaleNeurons(
        {1: [7, 20]}, -2.0, tokens=Positions(per_image)
    )

    class Scaled(WithRegister):
        targets: tuple[tuple[int, int], ...]

        def neurons(self, layer, post):
            if layer == 1:
                rows = [N_PREFIX + 1 + 4 * i + j for i, j in self.targets]
                post[torch.tensor(rows)[:, None], torch.tensor([7, 20])] *= -2
                return post
            return super().neurons(layer, post)

    pixels, by_hand = images(2), Scaled()
    out = run(LAYOUT, pixels, edit)
    for image, own, targets in zip(pixels, out, per_image, strict=True):
        by_hand.targets = targets
        torch.testing.assert_close(own, by_hand(image), rtol=1e-4, atol=1e-4)
