"""What the no-op measures say of heads that are known to be switched off, switched on, or empty."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interventions import models as tiny

from ttreg_interp.errors import DataError, InterventionError, UnsupportedModelError
from ttreg_interp.hooked import HookedLM, HookedViT
from ttreg_interp.interventions import (
    AttentionBias,
    ExtraTokens,
    Outliers,
    PatchActivation,
    TestTimeRegister,
    ZeroNeurons,
)
from ttreg_interp.testbed import photograph_tensor, planted_vit
from ttreg_interp.testbed.random_lm import random_lm
from ttreg_interp.theory.gains import response
from ttreg_interp.theory.moments import Moments
from ttreg_interp.theory.sinks import noop_measures

WITH_CLS = "timm with [CLS]"


@pytest.fixture(scope="module")
def planted():
    vit = planted_vit(image_size=96, depth=6)
    return HookedViT.wrap(vit.module), vit, photograph_tensor(96)[:6]


@pytest.fixture(scope="module")
def with_register(planted):
    model, vit, images = planted
    with model.intervened(TestTimeRegister(vit.truth)):
        return noop_measures(model, images, "test_time_registers", batch_size=4)


def rows_of(table, layer):
    return [row for row in table.heads if row.layer == layer]


# ---------------------------------------------------------------------- known heads


def test_heads_behind_the_planted_neurons_are_switched_off_and_those_before_are_not(
    planted, with_register
):
    behind = planted[1].emerges_at + 1
    for row in with_register.heads:
        if row.layer >= behind:
            assert row.no_op > 0.9 and row.attention.low > 0.99 and row.cosine > 0.95
        else:
            assert abs(row.no_op) < 0.1


def test_behind_the_planted_neurons_the_sink_alone_gives_the_output_and_before_it_does_not(
    planted, with_register
):
    behind = planted[1].emerges_at + 1
    for row in with_register.layers:
        if row.layer >= behind:
            assert row.sink_only.high < 0.01 < row.without_sink.low
        else:
            assert row.without_sink.high < 0.05 < row.sink_only.low


def test_an_outlier_patch_is_the_same_sink_as_the_register_that_replaces_it(planted, with_register):
    model, vit, images = planted
    norms = {}
    model.run_with_hooks(
        images,
        fwd_hooks=[("blocks.4.hook_resid_post", lambda x, hook: norms.update(x=x.norm(dim=-1)))],
    )
    threshold = 4 * float(norms["x"].detach().median())
    found = noop_measures(model, images, Outliers(threshold, layer=4), removal=False)
    last = model.cfg.n_layers - 1
    for outlier, register in zip(rows_of(found, last), rows_of(with_register, last), strict=True):
        assert outlier.no_op == pytest.approx(register.no_op, abs=0.1)
        assert outlier.value_ratio.estimate == pytest.approx(register.value_ratio.estimate, abs=0.1)
    assert "patches with norm" in found.sink


def test_the_key_of_an_attention_bias_is_measured_as_a_sink(planted, with_register):
    from ttreg_interp.theory.attention_bias import FitOptions, fit_attention_bias

    model, vit, images = planted
    fit = fit_attention_bias(
        model, images, vit.truth, options=FitOptions(least_images=2, held_out=0.5)
    )
    with model.intervened(fit.intervention()):
        found = noop_measures(model, images, "attention_bias", removal=False)
    for bias, register in zip(rows_of(found, 5), rows_of(with_register, 5), strict=True):
        assert bias.no_op == pytest.approx(register.no_op, abs=0.05)
        assert bias.attention.estimate == pytest.approx(register.attention.estimate, abs=0.02)


def test_zeroing_the_neurons_switches_the_heads_on_again(planted, with_register):
    model, vit, images = planted
    with model.intervened(ZeroNeurons(vit.truth) + ExtraTokens()):
        zeroed = noop_measures(model, images, "test_time_registers", removal=False)
    for row, intact in zip(rows_of(zeroed, 5), rows_of(with_register, 5), strict=True):
        assert row.no_op < 0.2 and row.varying > 10 * intact.varying
        assert row.varying == pytest.approx(row.varying_without_sink, rel=0.2)


# ---------------------------------------------------------------------- against the definitions


@pytest.fixture(scope="module")
def measured():
    """[CLS] as the sink of a tiny random model, with the cache that says the same in full."""
    model, images = tiny.model(WITH_CLS, torch.float64), tiny.images(5, 0, torch.float64)
    with torch.no_grad():
        _, cache = model.run_with_cache(images)
    return model, images, cache, noop_measures(model, images, "cls", batch_size=2)


def contributions(model, cache, layer, head):
    """c and r of every query but [CLS], [image, query, d_model], and the residual stream."""
    pattern = cache[f"blocks.{layer}.attn.hook_pattern"][:, head, 1:]
    values = cache[f"blocks.{layer}.attn.hook_v"][:, :, head]
    write = model.blocks[layer].attn.W_O[head]
    sink = (pattern[:, :, :1] @ values[:, :1]) @ write
    return sink, (pattern @ values) @ write, cache[f"blocks.{layer}.hook_resid_pre"][:, 1:]


@pytest.mark.parametrize(("layer", "head"), [(0, 1), (2, 0)])
def test_the_measures_are_what_their_definitions_say(measured, layer, head):
    model, _, cache, table = measured
    row = next(r for r in table.heads if (r.layer, r.head) == (layer, head))
    c, r, x = (t.detach() for t in contributions(model, cache, layer, head))
    pattern = cache[f"blocks.{layer}.attn.hook_pattern"][:, head, 1:].detach()
    norms = cache[f"blocks.{layer}.attn.hook_v"][:, :, head].detach().norm(dim=-1)
    lengths, mean_x = x.norm(dim=-1), x.norm(dim=-1).mean()
    units = torch.nn.functional.normalize(c, dim=-1).flatten(0, 1)
    cosines = units @ units.T
    n = len(units)
    freed = (r - c) / (1 - pattern[:, :, :1])
    spread = lambda t: (t - t.mean(dim=(0, 1))).square().sum(dim=-1).mean().sqrt() / mean_x  # noqa: E731
    expected = {
        "attention": pattern[:, :, 0].mean(),
        "value_ratio": (norms[:, 0] / norms[:, 1:].mean(dim=1)).mean(),
        "sink_size": (c.norm(dim=-1) / lengths).mean(),
        "other_size": ((r - c).norm(dim=-1) / lengths).mean(),
        "cosine": (cosines.sum() - n) / (n * (n - 1)),
        "constant": r.mean(dim=(0, 1)).norm() / mean_x,
        "varying": spread(r),
        "varying_without_sink": spread(freed),
    }
    for name, value in expected.items():
        found = getattr(row, name)
        found = found if isinstance(found, float) else found.estimate
        assert found == pytest.approx(float(value), rel=1e-9), name


def test_the_gains_of_mlp_and_head_are_their_response_over_that_to_random_directions(measured):
    model, _, cache, table = measured
    c, r, _ = (x.detach() for x in contributions(model, cache, 1, 0))
    row = next(row for row in table.heads if (row.layer, row.head) == (1, 0))
    random = torch.randn(4000, tiny.D_MODEL, generator=torch.Generator().manual_seed(0)).double()
    for reader, norm, reads in (
        ("mlp", model.blocks[1].ln2, model.blocks[1].mlp.W_in),
        ("head", model.ln_final, model.W_U),
    ):
        respond = lambda x: ((x - x.mean(dim=-1, keepdim=True)) * norm.w.detach()) @ reads.detach()  # noqa: B023, E731
        usual = respond(random).square().sum() / random.square().sum()
        for z, of in ((c, ""), (r - c, "_of_others")):
            gain = respond(z).square().sum(dim=(1, 2)) / z.square().sum(dim=(1, 2)) / usual
            found = getattr(row, f"{reader}_gain{of}").estimate
            assert found == pytest.approx(float(gain.sqrt().mean()), rel=0.02)


def test_removing_attention_changes_the_output_as_a_zeroed_attention_does(measured):
    model, images, _, table = measured
    zero = PatchActivation("blocks.1.hook_attn_out", torch.zeros(tiny.D_MODEL, dtype=torch.float64))
    with torch.no_grad():
        full = model(images)
        with model.intervened(zero):
            removed = model(images)
    change = ((removed - full).norm(dim=1) / full.norm(dim=1)).mean()
    assert table.layers[1].removed.estimate == pytest.approx(float(change))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(13, 40))
def test_a_map_responds_with_one_on_average_and_with_zero_in_its_kernel(seed, rank, width):
    generator = torch.Generator().manual_seed(seed)
    reads = torch.randn(width, rank, generator=generator, dtype=torch.float64)
    form = response(reads)
    assert float(form.trace()) == pytest.approx(width)
    x = torch.randn(width, generator=generator, dtype=torch.float64)
    unseen = x - reads @ torch.linalg.lstsq(reads, x[:, None]).solution[:, 0]
    assert float(unseen @ form @ unseen) < 1e-9 * float(x @ form @ x)


# ---------------------------------------------------------------------- streaming


def test_the_table_does_not_depend_on_the_batches(measured):
    model, images, _, table = measured
    again = noop_measures(model, [images[:1], images[1:3], images[3:]], "cls")
    for one, other in zip(table.heads, again.heads, strict=True):
        assert one.no_op == pytest.approx(other.no_op)
        assert one.attention.low == pytest.approx(other.attention.low)
        assert one.cosine == pytest.approx(other.cosine)


def test_intervals_narrow_with_images_and_one_image_has_none():
    moments, more = Moments(), Moments()
    values = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)).double()
    moments.add(values[:40])
    for part in values.split(100):
        more.add(part)
    few, many = moments.intervals()[0], more.intervals()[0]
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(10**0.5, rel=0.25)
    half = 1.96 * float(values[:, 0].std()) / 20
    assert many.high - many.estimate == pytest.approx(half, rel=1e-3)
    one = Moments()
    one.add(values[:1])
    assert one.intervals()[0].low == one.intervals()[0].high
    assert "no interval" in one.intervals()[0].method


def test_images_without_an_outlier_are_counted_and_left_out(planted):
    model, _, images = planted
    flat = torch.zeros_like(images[:1])
    norms = {}
    keep = ("blocks.4.hook_resid_post", lambda x, hook: norms.update(x=x[:, 1:].norm(dim=-1)))
    model.run_with_hooks(torch.cat((images, flat)), fwd_hooks=[keep])
    largest = norms["x"].detach().amax(dim=1).sort().values
    threshold = float((largest[2] + largest[3]) / 2)
    found = noop_measures(
        model, torch.cat((images, flat)), Outliers(threshold, 4), removal=False, batch_size=3
    )
    assert (found.n_images, found.n_without) == (4, 3)
    assert "(3 more without a sink)" in found.to_markdown()


# ---------------------------------------------------------------------- other models


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_a_language_model_is_measured_at_its_first_token(family):
    model = HookedLM.wrap(random_lm(family))
    texts = torch.randint(0, 50, (6, 8), generator=torch.Generator().manual_seed(0))
    found = noop_measures(model, texts, (0,))
    assert len(found.heads) == 3 * 4 and found.sink == "rows 0"
    assert all(0 < row.attention.estimate < 1 for row in found.heads)


@pytest.mark.parametrize("layout", ["timm Eva with rotation", "open_clip with ln_pre"])
def test_trained_registers_and_cls_of_other_families_are_measured(layout):
    model, images = tiny.model(layout), tiny.images(3)
    found = noop_measures(model, images, (0,), removal=False)
    assert all(0 < row.attention.estimate < 1 for row in found.heads)


# ---------------------------------------------------------------------- table and figure


def test_the_table_is_plain_json_and_markdown_and_a_figure(with_register, tmp_path):
    body = json.loads(json.dumps(with_register.to_dict()))
    assert len(body["heads"]) == 18 and body["heads"][17]["no_op"] == with_register.heads[17].no_op
    lines = with_register.to_markdown().splitlines()
    assert sum(line.startswith("| 5 |") for line in lines) == 3 + 1
    with_register.figure().savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_a_head_without_anything_to_switch_off_is_no_no_op(with_register):
    row = replace(with_register.heads[0], varying=0.0, varying_without_sink=0.0)
    assert row.no_op == 0.0


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("sink", "error", "message"),
    [
        ("test_time_registers", InterventionError, "has no test time registers"),
        ("attention_bias", DataError, "no AttentionBias runs"),
        (Outliers(1e9, 1), DataError, "None of 2 images has a sink .patches with norm"),
    ],
)
def test_a_sink_that_is_not_there_is_told(sink, error, message):
    with pytest.raises(error, match=message):
        noop_measures(tiny.model(WITH_CLS), tiny.images(2), sink)


def test_heads_that_change_what_they_mixed_are_refused():
    model, images = tiny.model(WITH_CLS), tiny.images(2)
    doubled = [("blocks.0.attn.hook_z", lambda z, hook: 2 * z)]
    with (
        model.hooks(fwd_hooks=doubled),
        pytest.raises(UnsupportedModelError, match="gated or norm"),
    ):
        noop_measures(model, images, "cls")


def test_a_bias_that_is_not_named_as_the_sink_is_a_key_among_the_others():
    model, images = tiny.model(WITH_CLS), tiny.images(2)
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, tiny.N_LAYERS, tiny.N_HEADS, 16, generator=generator)
    plain = noop_measures(model, images, "cls", removal=False).heads[0].attention.estimate
    with model.intervened(AttentionBias(k, v, copies=50.0)):
        biased = noop_measures(model, images, "cls", removal=False).heads[0].attention.estimate
    assert biased < plain
