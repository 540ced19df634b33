"""On a model whose register neurons are known: what each intervention does to [CLS]."""

import pytest
import torch

from ttreg_interp.hooked import HookedViT
from ttreg_interp.interventions import (
    CopyRegisterValuesTo,
    ExtraTokens,
    MoveNeurons,
    NeuronSet,
    Shape,
    TestTimeRegister,
    ZeroNeurons,
    mean_attention_bias,
    mean_neurons,
)
from ttreg_interp.interventions.frame import PatchGrid
from ttreg_interp.testbed import photograph_tensor, planted_vit


@pytest.fixture(scope="module", params=["timm", "open_clip"])
def planted(request):
    """The hooked model, its register neurons, and photographs."""
    vit = planted_vit(layout=request.param)
    pixels = photograph_tensor(mean=vit.mean, std=vit.std)
    return HookedViT.wrap(vit.module), NeuronSet.of(vit.truth), pixels[:2]


def change(planted, intervention) -> float:
    """Relative change of the output, |y' - y| / |y|, the worst image."""
    hooked, _, pixels = planted
    with torch.no_grad():
        plain = hooked(pixels)
        with hooked.intervened(intervention):
            edited = hooked(pixels)
    return ((edited - plain).norm(dim=-1) / plain.norm(dim=-1)).max().item()


@pytest.fixture(scope="module")
def held_out(planted):
    """Other photographs than those that the change is measured on."""
    return photograph_tensor()[8:12]


def test_zeroed_register_neurons_change_cls(planted):
    assert change(planted, ZeroNeurons(planted[1])) > 0.5


def test_their_mean_changes_cls_as_well(planted, held_out):
    """Here the damage is lost content, not only a value off the distribution."""
    assert change(planted, mean_neurons(planted[0], planted[1], [held_out])) > 0.5


@pytest.mark.parametrize(
    "options", [{}, {"semantics": "reference"}, {"n_registers": 3, "assign": "same"}]
)
def test_a_register_leaves_cls_as_it_was(planted, options):
    assert change(planted, TestTimeRegister(planted[1], **options)) < 0.1


def test_an_attention_bias_takes_the_place_of_the_neurons(planted, held_out):
    bias = mean_attention_bias(planted[0], TestTimeRegister(planted[1]), [held_out])
    assert change(planted, bias + ZeroNeurons(planted[1])) < 0.1


@pytest.mark.parametrize("seed", range(2))
def test_random_neurons_do_next_to_nothing(planted, seed):
    random = planted[1].matched_random(seed, planted[0].cfg.d_mlp)
    assert change(planted, ZeroNeurons(random)) < 0.02
    assert change(planted, TestTimeRegister(random)) < 0.02


def test_the_token_alone_does_next_to_nothing(planted):
    assert change(planted, ExtraTokens()) < 0.02


def test_the_value_in_random_neurons_does_not_make_a_register(planted):
    random = planted[1].matched_random(0, planted[0].cfg.d_mlp)
    control = CopyRegisterValuesTo(planted[1], random) + ZeroNeurons(planted[1])
    assert change(planted, control) > 0.5


def test_outliers_go_where_neurons_are_moved(planted):
    hooked, neurons, pixels = planted
    layout = hooked.layout()
    heart = Shape("heart")
    with torch.no_grad(), hooked.intervened(MoveNeurons(neurons, heart)):
        _, cache = hooked.run_with_cache(pixels, names_filter="blocks.11.hook_resid_post")
    norms = layout.grid(cache["resid_post", 11].norm(dim=-1))
    drawn = heart.on_grid(PatchGrid(layout.height, layout.width, 16, 16))
    assert torch.equal(norms > 200, drawn.expand_as(norms))


def test_outliers_stand_in_the_register_and_nowhere_else(planted):
    hooked, neurons, pixels = planted
    with torch.no_grad(), hooked.intervened(TestTimeRegister(neurons)):
        _, cache = hooked.run_with_cache(pixels, names_filter="blocks.11.hook_resid_post")
    norms = cache["resid_post", 11].norm(dim=-1)
    assert (norms[:, cache.layout.test_time_registers] > 200).all()
    assert (norms[:, cache.layout.patches] < 200).all()
