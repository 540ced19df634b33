"""A traced model is the hooked model: under every intervention, wherever both run."""

import copy

import pytest
import torch

pytest.importorskip("nnsight", reason="nnsight is not installed (pip install nnsight)")

from tests.backends.towers import TOWERS, both
from tests.interventions.kinds import ANYWHERE, HERE_AND_THERE, REGISTERS, fits
from tests.interventions.models import D_MODEL, images
from ttreg_interp.errors import InterventionError, LayoutError, UnsupportedModelError
from ttreg_interp.interventions import (
    KnockoutAttention,
    PatchActivation,
    TestTimeRegister,
    ZeroNeurons,
)

EXAMPLES = {**ANYWHERE, **REGISTERS, **HERE_AND_THERE}
WITH_REGISTERS = "timm with 4 trained registers"
ROTATING = "timm Eva with rotation"
TWO_REGISTERS = "transformers with gated MLP and 2 trained registers"
HUB_EXAMPLES = [  # the threshold of outliers is made for other weights
    name for name in EXAMPLES if fits(name, TWO_REGISTERS) and "outliers" not in name
]
TRIED_WITH_ALL = ("timm", "timm Eva, rotating", "DINOv2 hub")
MADE_FOR_REGISTERS = [name for name in EXAMPLES if name.startswith("trained registers")]
ON_ALL_TOWERS = [
    "a test-time register",
    "a register as in the reference",
    "an attention bias",
    "hidden patches",
    "heads at their mean",
    "gated heads",
    "a clipped softmax",
    "a patched residual",
]


def same(tower: str, example: str, layout: str = "timm with [CLS]") -> None:
    """Both runs agree, and differ from the plain one."""
    hooked, traced = both(tower)
    pixels = images(2)
    plain = hooked(pixels)
    with hooked.intervened(EXAMPLES[example](layout)):
        expected = hooked(pixels)
    with traced.intervened(EXAMPLES[example](layout)):
        found = traced(pixels)
    assert not torch.equal(expected, plain)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("example", [name for name in EXAMPLES if name not in MADE_FOR_REGISTERS])
def test_every_kind_of_intervention_does_what_it_does_under_hook_points(example):
    same("timm", example)


@pytest.mark.parametrize("example", [name for name in EXAMPLES if fits(name, ROTATING)])
def test_every_kind_does_so_where_queries_and_keys_are_turned(example):
    same("timm Eva, rotating", example, ROTATING)


@pytest.mark.parametrize("example", HUB_EXAMPLES)
def test_every_kind_does_so_in_code_that_hides_operations_or_is_refused(example):
    _, traced = both("DINOv2 hub")
    sites = {name for name, _ in EXAMPLES[example](TWO_REGISTERS).fwd_hooks(traced)}
    if sites <= set(traced.hook_dict):
        same("DINOv2 hub", example, TWO_REGISTERS)
        return
    with (
        pytest.raises(InterventionError, match="acts at blocks.*attn.* names no site"),
        traced.intervened(EXAMPLES[example](TWO_REGISTERS)),
    ):
        pass


def test_in_such_code_all_kinds_run_but_those_that_add_keys_or_write_scores():
    _, traced = both("DINOv2 hub")
    refused = {
        name
        for name in HUB_EXAMPLES
        for site, _ in EXAMPLES[name](TWO_REGISTERS).fwd_hooks(traced)
        if site not in traced.hook_dict
    }
    assert refused == {"an attention bias", "an attention bias in one layer", "softmax off by one"}


@pytest.mark.parametrize("example", MADE_FOR_REGISTERS)
def test_trained_registers_are_edited_alike(example):
    same("timm, trained registers", example, WITH_REGISTERS)


@pytest.mark.parametrize("example", ON_ALL_TOWERS)
@pytest.mark.parametrize("tower", [name for name in TOWERS if name not in TRIED_WITH_ALL])
def test_every_family_agrees(tower, example):
    if tower == "timm, not fused" and example == "an attention bias":
        pytest.skip("adds a key, which a pattern has no site for")
    same(tower, example)


@pytest.mark.parametrize("tower", TOWERS)
def test_every_hook_point_that_is_served_holds_what_the_hooked_model_has(tower):
    hooked, traced = both(tower)
    register = TestTimeRegister({0: [3, 50], 1: [7]})
    with hooked.intervened(register), traced.intervened(register):
        _, expected = hooked.run_with_cache(images(2))
        output, found = traced.run_with_cache(images(2))
    assert set(found) == set(traced.hook_dict)
    assert found.layout == expected.layout
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("tower", ["timm", "open_clip", "DINOv3"])
def test_tokens_late_starts_and_early_stops_agree(tower):
    hooked, traced = both(tower)
    register = TestTimeRegister({0: [3], 1: [7]}, n_registers=2)
    pixels = images(2)
    with hooked.intervened(register), traced.intervened(register):
        for options in ({"return_type": "tokens"}, {"stop_at_layer": 2}, {"stop_at_layer": 0}):
            torch.testing.assert_close(traced(pixels, **options), hooked(pixels, **options))
        resid = hooked(pixels, stop_at_layer=1)
        for options in ({"start_at_layer": 1}, {"start_at_layer": 1, "stop_at_layer": 3}):
            torch.testing.assert_close(traced(resid, **options), hooked(resid, **options))
        output, tokens = traced(pixels, "both")
    torch.testing.assert_close(traced(pixels), hooked(pixels))
    assert tokens.shape[1] == hooked.layout().n_tokens
    assert not torch.equal(output, hooked(pixels))


def test_the_module_runs_as_before_once_interventions_are_lifted():
    _, traced = both("ViT")
    before = traced.parts.reference(images(1))
    with traced.intervened(ZeroNeurons({0: range(100)})):
        assert not torch.equal(traced(images(1)), before)
    assert torch.equal(traced.parts.reference(images(1)), before)
    assert torch.equal(traced(images(1)), before)


def test_gradients_reach_the_images_through_a_trace():
    hooked, traced = both("timm")
    grads = []
    for model in (hooked, traced):
        pixels = images(1).requires_grad_()
        with model.intervened(TestTimeRegister({1: [7]})):
            model(pixels).square().sum().backward()
        grads.append(pixels.grad)
    assert grads[0] is not None and grads[0].abs().sum() > 0
    torch.testing.assert_close(grads[1], grads[0])


def test_an_edit_where_the_map_names_no_site_is_refused_by_kind_and_site():
    _, traced = both("timm")
    norm = PatchActivation("blocks.0.ln1.hook_normalized", torch.zeros(D_MODEL))
    with (
        pytest.raises(InterventionError, match="no hook point 'blocks.0.ln1.hook_normalized'"),
        traced.intervened(norm),
    ):
        pass
    with (
        pytest.raises(
            InterventionError, match=r"A hook acts at blocks.0.ln1.hook_scale, .* serves"
        ),
        traced.hooks(fwd_hooks=[("blocks.0.ln1.hook_scale", lambda x, hook: x)]),
    ):
        pass


def test_kinds_are_refused_where_attention_is_not_a_site(spelled_out):
    bias = EXAMPLES["an attention bias"]("timm with [CLS]")
    with (
        pytest.raises(
            InterventionError, match=r"AttentionBias acts at blocks.0.attn.hook_k, .* no site"
        ),
        spelled_out.intervened(bias),
    ):
        pass


def test_an_error_in_an_intervention_comes_out_as_it_is():
    _, traced = both("timm")
    everything = KnockoutAttention("all", "all")
    with (
        pytest.raises(InterventionError, match="without any key"),
        traced.intervened(everything),
    ):
        traced(images(1))
    assert not any(point.has_hooks() for point in traced.hook_dict.values())


def test_what_a_trace_cannot_do_is_refused():
    _, traced = both("timm")
    with pytest.raises(LayoutError, match="this model has 3 blocks"):
        traced(images(1), stop_at_layer=4)
    with pytest.raises(LayoutError, match="both or neither"):
        traced()
    with pytest.raises(UnsupportedModelError, match="Copy the module and trace the copy"):
        copy.deepcopy(traced)
