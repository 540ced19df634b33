"""Test-time registers hold what they should, count as they should, and nobody else sees them."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ttreg_interp.interventions import (
    ExtraTokens,
    Intervention,
    MoveNeurons,
    NeuronSet,
    TestTimeRegister,
)

from .kinds import NEURONS
from .laws import batches, before_and_after, cached, few, layouts, run
from .models import LAYOUTS, images, model

POST = "blocks.1.mlp.hook_post"
OURS = [7, 20, 90]
"""The neurons of block 1."""


def split(layout: str, post: torch.Tensor, n_registers: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations of our neurons in the registers, and in all other rows."""
    first = model(layout).layout().n_prefix
    values = post[:, :, OURS]
    others = torch.cat((values[:, :first], values[:, first + n_registers :]), dim=1)
    return values[:, first : first + n_registers], others


@few
@given(layouts, batches)
def test_the_register_takes_each_neurons_maximum_and_the_others_keep_nothing(layout, pixels):
    before, after = before_and_after(layout, pixels, TestTimeRegister(NEURONS), POST)
    register, others = split(layout, after, 1)
    assert torch.equal(register[:, 0], before[:, :, OURS].amax(dim=1))
    assert not others.any()


@few
@given(layouts, batches)
def test_no_other_neuron_is_touched(layout, pixels):
    before, after = before_and_after(layout, pixels, TestTimeRegister(NEURONS), POST)
    rest = [n for n in range(before.shape[2]) if n not in OURS]
    assert torch.equal(before[:, :, rest], after[:, :, rest])


@few
@given(layouts, batches)
def test_the_search_over_patches_leaves_out_prefix_and_register(layout, pixels):
    register = TestTimeRegister(NEURONS, search="patches", scale=2.0)
    before, after = before_and_after(layout, pixels, register, POST)
    patches = before[:, model(layout).layout().n_prefix + 1 :, OURS]
    assert torch.equal(split(layout, after, 1)[0][:, 0], 2 * patches.amax(dim=1))


@few
@given(layouts, st.integers(2, 4), st.integers(0, 99))
def test_a_split_gives_every_neuron_to_one_register_as_evenly_as_can_be(layout, n, seed):
    register = TestTimeRegister(NEURONS, n, seed=seed, search="patches")
    owners = register._owners()
    counts = [list(owners.values()).count(k) for k in range(n)]
    assert set(owners) == set(NEURONS)
    assert max(counts) - min(counts) <= 1
    before, after = before_and_after(layout, images(2), register, POST)
    held, _ = split(layout, after, n)
    strongest = before[:, model(layout).layout().n_prefix + n :, OURS].amax(dim=1)
    for column, neuron in enumerate(OURS):
        expected = torch.zeros(2, n)
        expected[:, owners[1, neuron]] = strongest[:, column]
        assert torch.equal(held[:, :, column], expected)


def test_the_split_depends_on_the_seed():
    owners = {tuple(TestTimeRegister(NEURONS, 3, seed=s)._owners().values()) for s in range(8)}
    assert len(owners) > 1


@few
@given(layouts, batches)
def test_by_outlier_rank_the_kth_register_takes_the_values_of_the_kth_outlier(layout, pixels):
    register = TestTimeRegister(NEURONS, 3, assign="outlier_rank", search="patches")
    before, after = before_and_after(layout, pixels, register, POST)
    patches = before[:, model(layout).layout().n_prefix + 3 :, OURS]
    update = patches @ model(layout).blocks[1].mlp.W_out[OURS]
    for image, norms in enumerate(update.norm(dim=-1)):
        ranked = norms.argsort(descending=True)[:3]
        assert torch.equal(split(layout, after, 3)[0][image], patches[image, ranked])


@few
@given(layouts, batches)
def test_the_reference_moves_one_signed_extreme_and_leaves_cls(layout, pixels):
    register = TestTimeRegister(NEURONS, semantics="reference", fill="mean")
    before, after = before_and_after(layout, pixels, register, POST)
    values, plan = before[:, :, OURS], model(layout).layout().with_test_time_registers(1)
    flat = values.flatten(1)
    extreme = flat.gather(1, flat.abs().argmax(dim=1, keepdim=True))
    held, others = split(layout, after, 1)
    assert torch.equal(held, extreme[:, :, None].expand_as(held))
    assert torch.equal(after[:, plan.cls], before[:, plan.cls])
    mean = values[:, plan.patches].mean(dim=1, keepdim=True)
    torch.testing.assert_close(others[:, plan.n_cls :], mean.expand_as(others[:, plan.n_cls :]))


@pytest.mark.parametrize("fill", ["same", "only_outliers"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_tokens_keep_what_the_fill_leaves_them(layout, fill):
    before, after = before_and_after(layout, images(3), TestTimeRegister(NEURONS, fill=fill), POST)
    (_, old), (_, new) = split(layout, before, 1), split(layout, after, 1)
    patches = before[:, model(layout).layout().n_prefix + 1 :, OURS]
    mean, std = patches.mean(dim=1, keepdim=True), patches.std(dim=1, keepdim=True)
    high = (old > mean + std) if fill == "only_outliers" else torch.zeros_like(old, dtype=bool)
    torch.testing.assert_close(new, torch.where(high, mean, old))
    assert fill == "same" or high.any()


@few
@given(layouts, batches)
def test_a_register_is_an_extra_token_to_which_neurons_are_moved(layout, pixels):
    moved = ExtraTokens() + MoveNeurons(NEURONS, "test_time_registers")
    assert torch.equal(run(layout, pixels, TestTimeRegister(NEURONS)), run(layout, pixels, moved))


@few
@given(layouts, batches, st.integers(2, 4))
def test_counting_as_tau_keys_is_being_there_tau_times(layout, pixels, tau):
    for one, many in [
        (ExtraTokens(copies=float(tau)), ExtraTokens(tau)),
        (
            TestTimeRegister(NEURONS, multiplicity=float(tau)),
            TestTimeRegister(NEURONS, tau, assign="same"),
        ),
    ]:
        torch.testing.assert_close(
            run(layout, pixels, one), run(layout, pixels, many), rtol=1e-4, atol=1e-4
        )


@few
@given(layouts, batches)
def test_an_extra_token_that_is_never_visible_changes_nothing(layout, pixels):
    hidden = ExtraTokens(2, "patch_gaussian", visible_from_layer=3)
    torch.testing.assert_close(
        run(layout, pixels, hidden), run(layout, pixels), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_hidden_register_gets_no_attention_until_its_layer(layout):
    patterns = cached(layout, images(2), TestTimeRegister(NEURONS, visible_from_layer=2))
    register = model(layout).layout().n_prefix
    drawn = [patterns["pattern", layer][..., register].max().item() for layer in range(3)]
    assert drawn[:2] == [0, 0]
    assert drawn[2] > 0


@few
@given(layouts, batches)
def test_two_registers_stand_side_by_side_wherever_they_come_from(layout, pixels):
    """As one value, as two in a row, or in nested contexts, in either order."""
    a, b = TestTimeRegister({0: [3, 50]}), TestTimeRegister({1: OURS}, scale=2.0)
    together = run(layout, pixels, a + b)
    torch.testing.assert_close(run(layout, pixels, b, a), together, rtol=1e-4, atol=1e-4)
    cache = cached(layout, pixels, a + b)
    assert cache.layout.n_test_time_registers == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_readers_do_not_see_registers(layout):
    hooked, pixels = model(layout), images(2)
    with torch.no_grad():
        plain = hooked(pixels, return_type="tokens")
        with hooked.intervened(TestTimeRegister(NEURONS, 3)):
            assert hooked(pixels, return_type="tokens").shape == plain.shape


@few
@given(layouts, st.sampled_from(["zero", "zero_before_ln_pre", "patch_mean", "patch_gaussian"]))
def test_registers_start_as_asked(layout, init):
    pixels = images(2)
    embedded = cached(layout, pixels, ExtraTokens(4, init, seed=5))["hook_full_embed"]
    rows = model(layout).layout().with_test_time_registers(4)
    registers, patches = embedded[:, rows.test_time_registers], embedded[:, rows.patches]
    norm = model(layout).parts.ln_pre
    expected = {
        "zero": torch.zeros_like(registers),
        "zero_before_ln_pre": torch.zeros_like(registers) if norm is None else norm.bias,
        "patch_mean": patches.mean(dim=1, keepdim=True),
    }
    if init in expected:
        torch.testing.assert_close(registers, expected[init].expand_as(registers))
    else:
        z = (registers - patches.mean(1, keepdim=True)) / patches.std(1, keepdim=True)
        assert 0.6 < z.std() < 1.4
        assert torch.allclose(z[0], z[1], atol=1e-4)


def test_registers_work_at_another_image_size():
    layout = "timm with 4 trained registers"
    pixels = torch.randn(2, 3, 48, 32, generator=torch.Generator().manual_seed(0))
    register = TestTimeRegister(NEURONS, search="patches", fill="mean")
    _, after = before_and_after(layout, pixels, register, POST)
    assert after.shape[1] == 5 + 1 + 24
    assert not torch.equal(run(layout, pixels, register), run(layout, pixels))


@pytest.fixture(scope="module")
def reference_cases(golden):
    from safetensors.torch import load_file

    cases = json.loads((golden / "ref_clip_small.json").read_text())
    return load_file(golden / "ref_clip_small.safetensors"), cases


@pytest.fixture(scope="module")
def reference_model(reference_cases):
    from open_clip.transformer import VisionTransformer

    from ttreg_interp.hooked import HookedViT

    tensors, _ = reference_cases
    tower = VisionTransformer(
        image_size=64, patch_size=16, width=128, layers=6, heads=2, mlp_ratio=4, output_dim=64
    )
    weights = {k[2:]: v.float() for k, v in tensors.items() if k.startswith("w.")}
    tower.load_state_dict(weights)
    return HookedViT.wrap(tower.eval())


REFERENCE = [
    "noedit_1",
    "tt_zero_1",
    "tt_zero_2",
    "tt_zero_1_scale2",
    "tt_zero_2_listscale",
    "tt_mean_1",
    "tt_only_outliers_1",
    "tt_same_1",
    "tt_zero_1_five_neurons",
]


def reference_intervention(name: str, case: dict) -> Intervention:
    """What the reference was asked to do, as a value."""
    if name == "noedit_1":
        return ExtraTokens(1, "zero_before_ln_pre")
    scale = case["scale"]
    return TestTimeRegister(
        NeuronSet.of(case["neurons_to_ablate"]),
        case["num_registers"],
        "reference",
        fill=case["normal_values"],
        scale=tuple(scale) if isinstance(scale, list) else float(scale),
    )


@pytest.mark.parametrize("batch", [8, 1])
@pytest.mark.parametrize("name", REFERENCE)
def test_the_reference_semantics_are_those_of_the_authors_code(
    name, batch, reference_cases, reference_model
):
    """The reference edits one image at a time, so its batch is ours as if alone."""
    tensors, cases = reference_cases
    intervention = reference_intervention(name, cases[name])
    n = intervention.n_added_tokens
    pixels = tensors["x"].float()[:batch]
    with torch.no_grad(), reference_model.intervened(intervention):
        out, cache = reference_model.run_with_cache(pixels)
    torch.testing.assert_close(out, tensors[f"{name}.out"][:batch], rtol=0, atol=1e-5)
    norms = torch.stack([cache["resid_post", layer].norm(dim=-1) for layer in range(6)], dim=1)
    at_the_end = torch.cat((norms[..., :1], norms[..., 1 + n :], norms[..., 1 : 1 + n]), dim=-1)
    torch.testing.assert_close(
        at_the_end, tensors[f"{name}.layer_norms"][:batch], rtol=1e-5, atol=1e-5
    )
