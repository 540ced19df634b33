"""Which score is led astray by what: the table of docs/concepts/scores.md, held to here."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.discovery.models import FIRING, Push, direction, hooked, marked_vit, noise_images, read
from ttreg_interp.discovery import FindConfig, find_outliers, find_register_neurons
from ttreg_interp.discovery.config import SCORES

TRUE = Push(layer=2, neuron=7, places=(0, 5))
PUSHES_AWAY = torch.zeros(64).index_fill(0, torch.tensor([14]), 1.0)


@dataclass(frozen=True)
class Trap:
    """A model that may lead a score astray, and its register neurons."""

    build: Callable[[], nn.Module]
    truth: dict[int, tuple[int, ...]]
    right: set[str]
    """The scores that rank the register neurons first."""


@torch.no_grad()
def _loud() -> nn.Module:
    """A neuron that fires strongly on every token and writes little."""
    vit = marked_vit(TRUE)
    mlp = vit.blocks[1].mlp
    mlp.fc1.weight[3], mlp.fc1.bias[3] = 0, 10 * FIRING
    mlp.fc2.weight[:, 3] = PUSHES_AWAY / FIRING
    return vit


@torch.no_grad()
def _cancelling() -> nn.Module:
    """Two loud neurons whose large writes cancel."""
    vit = marked_vit(TRUE)
    mlp = vit.blocks[1].mlp
    for neuron, sign in ((3, 1), (4, -1)):
        mlp.fc1.weight[neuron], mlp.fc1.bias[neuron] = 0, 10 * FIRING
        mlp.fc2.weight[:, neuron] = sign * PUSHES_AWAY * TRUE.size / FIRING
    return vit


@torch.no_grad()
def _mute() -> nn.Module:
    """Neurons that fire at outliers, more steadily than the register neuron, and write nothing."""
    vit = marked_vit(TRUE)
    mlp = vit.blocks[2].mlp
    for neuron in (20, 21, 22):
        read(mlp, neuron, TRUE.mark, bias=0.0)
        mlp.fc2.weight[:, neuron] = 0
    return vit


@torch.no_grad()
def _echo() -> nn.Module:
    """A later neuron that fires because a token is an outlier, and writes elsewhere."""
    vit = marked_vit(TRUE)
    mlp = vit.blocks[3].mlp
    mlp.fc1.weight[9] = 8 * direction(TRUE.along)
    mlp.fc1.bias[9] = -8
    mlp.fc2.weight[:, 9] = PUSHES_AWAY * 20 / FIRING
    return vit


@torch.no_grad()
def _negative() -> nn.Module:
    """A gated MLP: the register neuron's activation is negative."""
    from timm.layers import SwiGLU

    vit = marked_vit(mlp_layer=SwiGLU)
    mlp = vit.blocks[2].mlp
    vit.pos_embed[0, [1, 6], 0] = 6
    for weight, bias, gain in (
        (mlp.fc1_g.weight, mlp.fc1_g.bias, 1.0),
        (mlp.fc1_x.weight, mlp.fc1_x.bias, -1.0),
    ):
        weight[7] = 0
        weight[7, 0], bias[7] = 2.5 * gain, -2 * gain
    mlp.fc2.weight[:, 7] = -200 / FIRING * direction(0)
    return vit


ALL = set(SCORES)
TRAPS = {
    "fires everywhere": Trap(_loud, {2: (7,)}, {"contrast", "contribution", "projection"}),
    "large writes that cancel": Trap(_cancelling, {2: (7,)}, {"contrast", "projection"}),
    "fires at outliers, writes nothing": Trap(_mute, {2: (7,)}, {"contribution", "projection"}),
    "fires because of outliers": Trap(_echo, {2: (7,)}, {"contribution", "projection"}),
    "negative activation": Trap(_negative, {2: (7,)}, {"abs", "contribution", "projection"}),
    "two kinds, opposite directions": Trap(
        lambda: marked_vit(TRUE, Push(1, 30, (10, 11), mark=1, sign=-1.0)),
        {1: (30,), 2: (7,)},
        ALL - {"contrast"},
    ),
    "no [CLS]": Trap(lambda: marked_vit(TRUE, class_token=False), {2: (7,)}, ALL),
}


@pytest.mark.parametrize("name", TRAPS)
def test_each_score_falls_into_the_traps_that_the_docs_say(name):
    trap = TRAPS[name]
    model, images = hooked(trap.build()), noise_images()
    k = sum(map(len, trap.truth.values()))
    right = set()
    for score in SCORES:
        config = FindConfig(score=score, top_k=k, first_layer=1, last_layer=3, evidence=False)
        if find_register_neurons(model, images, config).by_layer() == trap.truth:
            right.add(score)
    assert right == trap.right


@torch.no_grad()
def _cls_too() -> nn.Module:
    """[CLS] is an outlier as well, by a neuron of its own that is the stronger one."""
    vit = marked_vit(TRUE)
    vit.cls_token[..., 1] = 6
    mlp = vit.blocks[2].mlp
    read(mlp, 40, mark=1)
    mlp.fc2.weight[:, 40] = 2 * TRUE.size / FIRING * direction(1)
    return vit


@pytest.mark.parametrize(("candidates", "found"), [("patches", {2: (7,)}), ("all", {2: (40,)})])
def test_an_outlier_at_cls_misleads_only_who_counts_cls_as_a_candidate(candidates, found):
    config = FindConfig(candidates=candidates, top_k=1, evidence=False)
    model = hooked(_cls_too())
    assert find_register_neurons(model, noise_images(), config).by_layer() == found
    report = find_outliers(model, noise_images(), FindConfig())
    assert report.priors.cls_outliers == 16


@pytest.mark.parametrize("name", TRAPS)
def test_nothing_has_to_be_known_to_find_the_neurons_of_every_trap(name):
    trap = TRAPS[name]
    found = find_register_neurons(hooked(trap.build()), noise_images(), FindConfig(evidence=False))
    assert found.by_layer() == trap.truth


def test_the_table_in_the_docs_is_this_one():
    page = Path(__file__).resolve().parents[2] / "docs" / "concepts" / "scores.md"
    rows = [line.strip("| \n").split(" | ") for line in page.read_text().splitlines()]
    head = next(row for row in rows if row[0] == "trap")
    table = {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows if row[0] in TRAPS}
    expected = {
        name: {score: "yes" if score in trap.right else "no" for score in SCORES}
        for name, trap in TRAPS.items()
    }
    assert table == expected
