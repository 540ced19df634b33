"""A model described by a map alone does what the hooked model of the same weights does."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch

pytest.importorskip("nnsight", reason="nnsight is not installed (pip install nnsight)")

import transformers as hf

from tests.backends.intern_vit import CONFIG, chat_of, shape_of, sites_of_chat
from tests.backends.maps import UNKNOWN_SHAPE, UNKNOWN_SITES
from tests.hooked.sources.hf_families import randomised
from tests.interventions.kinds import ANYWHERE, HERE_AND_THERE, REGISTERS
from tests.interventions.models import images
from ttreg_interp.backends.nnsight import TracedViT
from ttreg_interp.backends.shape import TowerShape
from ttreg_interp.backends.sites import BlockSites, SiteMap
from ttreg_interp.discovery import FindConfig, find_register_neurons
from ttreg_interp.errors import InterventionError, LayoutError, UnsupportedModelError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.interventions import MaskTokens, TestTimeRegister
from ttreg_interp.testbed import photograph_tensor, planted_vit

LAYOUT = "timm with [CLS]"
EXAMPLES = {
    name: make(LAYOUT)
    for name, make in {**ANYWHERE, **REGISTERS, **HERE_AND_THERE}.items()
    if not name.startswith("trained registers") and "outliers" not in name
}
ADD_KEYS = {"an attention bias", "an attention bias in one layer", "softmax off by one"}


@cache
def three() -> dict[str, HookedViT | TracedViT]:
    """The same weights: under hook points, and by maps of code that nobody knows."""
    tower = randomised(hf.InternVLVisionModel(CONFIG))
    models = {"hooked": HookedViT.wrap(tower)}
    for fused in (True, False):
        chat = chat_of(tower, fused)
        name = "fused" if fused else "spelled out"
        models[name] = TracedViT.trace(chat, sites_of_chat(fused), shape_of(chat))
    return models


def agree(written: str, example: str) -> None:
    hooked, traced, pixels = three()["hooked"], three()[written], images(2)
    with torch.no_grad():
        with hooked.intervened(EXAMPLES[example]):
            expected = hooked(pixels)
        with traced.intervened(EXAMPLES[example]):
            found = traced(pixels)
        assert not torch.allclose(expected, hooked(pixels), atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_kind_runs_where_attention_is_a_site(example):
    agree("fused", example)


@pytest.mark.parametrize("example", sorted(EXAMPLES.keys() - ADD_KEYS))
def test_every_kind_but_added_keys_runs_where_only_the_pattern_is(example):
    agree("spelled out", example)


@pytest.mark.parametrize("example", sorted(ADD_KEYS))
def test_added_keys_are_refused_there(example):
    with (
        pytest.raises(InterventionError, match=r"acts at blocks.0?.*attn.hook_.* names no site"),
        three()["spelled out"].intervened(EXAMPLES[example]),
    ):
        pass


@pytest.mark.parametrize("written", ["fused", "spelled out"])
def test_every_hook_point_that_a_map_serves_holds_what_the_hooked_model_has(written):
    hooked, traced = three()["hooked"], three()[written]
    register = TestTimeRegister({0: [3, 50], 1: [7]})
    with torch.no_grad(), hooked.intervened(register), traced.intervened(register):
        _, expected = hooked.run_with_cache(images(2))
        _, found = traced.run_with_cache(images(2))
    assert found.layout == expected.layout and set(found) == set(traced.hook_dict)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5, msg=name)


def test_the_model_around_the_tower_reads_what_the_register_leaves():
    traced, register = three()["fused"], TestTimeRegister({0: [3, 50]})
    with torch.no_grad(), traced.intervened(register):
        logits, pooled = traced(pixel_values=images(2)), traced(images(2))
        chat = traced.envoy._module
        torch.testing.assert_close(logits, chat.mlp1(pooled))
    assert not torch.allclose(logits, chat(images(2)), atol=1e-4)


def test_neurons_are_found_by_a_small_map_as_under_hook_points():
    planted = planted_vit(depth=6, image_size=112)
    middle = TracedViT.trace(copy.deepcopy(planted.module)).sites.inside.resid_mid
    modules = BlockSites("norm1", "attn.proj", "norm2", "mlp.fc2", resid_mid=middle)
    n_heads = planted.module.blocks[0].attn.num_heads
    shape = TowerShape(
        6, n_heads, image_size=(112, 112), patch_size=planted.module.patch_embed.patch_size
    )
    written = TracedViT.trace(
        copy.deepcopy(planted.module), SiteMap("blocks.{layer}", modules), shape
    )
    pixels, config = photograph_tensor(112)[:6], FindConfig(batch_size=6, evidence=False)
    expected = find_register_neurons(HookedViT.wrap(planted.module), pixels, config)
    found = find_register_neurons(written, pixels, config)
    assert len(found.neurons) > 0 and found.by_layer() == expected.by_layer()
    assert [entry[:2] for entry in found.ranking] == [entry[:2] for entry in expected.ranking]


# ---------------------------------------------------------------------- maps that do not fit


def mapped(module, **changes):
    inside = replace(UNKNOWN_SITES.inside, **changes)
    return TracedViT.trace(module, replace(UNKNOWN_SITES, inside=inside), UNKNOWN_SHAPE)


@pytest.mark.parametrize(
    "changes",
    [
        {"pattern": "mixer.source.nothing_3.output"},
        {"z": "mixer.nowhere.output"},
        {"resid_mid": "source.elsewhere_0.output"},
    ],
)
def test_a_site_that_does_not_exist_is_refused_before_any_run(unknown, changes):
    (site,) = changes.values()
    with pytest.raises(UnsupportedModelError, match=f"names '{site}'.*lists the operations"):
        mapped(unknown, **changes)


def test_a_scale_that_does_not_exist_is_refused(unknown):
    with pytest.raises(UnsupportedModelError, match="names 'stages.0.ls2'"):
        mapped(unknown, mlp_gamma="ls2")


def test_a_site_that_the_forward_never_passes_is_refused(unknown):
    unused = mapped(unknown, pattern="mixer.drop.input", z="mixer.qkv.output")  # before the pattern
    register = TestTimeRegister({0: [3]})
    with unused.intervened(register):
        assert unused(images(1)).shape == (1, 5)
    with (
        pytest.raises(InterventionError, match="another order than the map"),
        unused.hooks(fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: z)]),
        unused.intervened(MaskTokens((1,))),
    ):
        unused(images(1))


def test_a_module_whose_class_has_no_source_text_is_mapped_by_modules_alone():
    code = """
class Stage(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = torch.nn.LayerNorm(8), torch.nn.Linear(8, 8)
        self.norm2, self.up, self.down = torch.nn.LayerNorm(8), torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)
    def forward(self, x):
        x = x + self.out(self.norm(x))
        return x + self.down(self.up(self.norm2(x)).relu())
class Tower(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.stages = torch.nn.Conv2d(3, 8, 8, 8), torch.nn.ModuleList([Stage()])
    def forward(self, pixels):
        x = self.embed(pixels).flatten(2).transpose(1, 2)
        return self.stages[0](x).mean(dim=1)
"""
    names = {"torch": torch, "__name__": "made_at_run_time"}
    exec(code, names)
    tower = names["Tower"]().eval()
    inside = replace(
        UNKNOWN_SITES.inside, ln1="norm", attn_out="out", ln2="norm2", mlp_out="down",
        pattern=None, z=None, resid_mid=None, attn_contribution="out.output", mlp_contribution=None,
    )  # fmt: skip
    shape = replace(UNKNOWN_SHAPE, n_layers=1, n_heads=1, n_cls=0)
    model = TracedViT.trace(tower, replace(UNKNOWN_SITES, inside=inside), shape)
    with torch.no_grad(), model.intervened(TestTimeRegister({0: [3]})):
        _, cache = model.run_with_cache(images(1))
    assert cache["blocks.0.mlp.hook_post"].shape == (1, 17, 16)


class Packed(torch.nn.Module):
    """A tower that packs the patches of all images into one sequence."""

    def __init__(self, unknown):
        super().__init__()
        self.stages = unknown.stages
        self.patches = unknown.patches

    def forward(self, pixels):
        tokens = self.patches(pixels).flatten(2).transpose(1, 2).flatten(0, 1)
        return self.stages[0](tokens)


def test_a_tower_without_a_batch_axis_is_refused_when_it_runs(unknown):
    packed = TracedViT.trace(Packed(unknown), UNKNOWN_SITES, replace(UNKNOWN_SHAPE, n_layers=1))
    with pytest.raises(LayoutError, match=r"take \[batch, token, d_model\].*Qwen2-VL"):
        packed(images(1))
