"""torch.compile: a baked model compiles whole; a hooked one never loses its hooks silently."""

import pytest
import torch

from tests.hooked import families
from tests.hooked.sources import hf_families
from ttreg_interp.deploy.bake import bake
from ttreg_interp.errors import InterventionError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.interventions import (
    AttentionBias,
    ExtraTokens,
    Intervention,
    TestTimeRegister,
    ZeroNeurons,
)

REGISTER = TestTimeRegister({0: [3, 5]}, multiplicity=2.0)
ARMS = {
    "plain": None,
    "register": REGISTER,
    "other register": TestTimeRegister({0: [11, 2]}),
    "zero": ZeroNeurons({0: [3, 5]}),
    "other zero": ZeroNeurons({0: [8, 9]}),
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def _shallow() -> torch.nn.Module:
    """One block is enough to have hooks, and compiles in a second."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=1, num_heads=2).eval()


def _compiled(module: torch.nn.Module, **options) -> torch.nn.Module:
    return torch.compile(module, backend="eager", **options)


def _run(model: HookedViT, run: torch.nn.Module, arm: Intervention | None, pixels: torch.Tensor):
    if arm is None:
        return run(pixels)
    with model.intervened(arm):
        return run(pixels)


SOURCES = {
    "timm": _shallow,
    "open_clip": lambda: families.make("open_clip"),
    "transformers": hf_families.FAMILIES["DINOv3"],
}


@pytest.mark.parametrize("library", SOURCES)
@torch.no_grad()
def test_a_baked_model_compiles_as_one_graph(library):
    model = HookedViT.wrap(SOURCES[library]())
    pixels = torch.randn(2, 3, *model.image_size)
    baked = bake(model, REGISTER)
    expected, found = baked(pixels), _compiled(baked, fullgraph=True)(pixels)
    if not isinstance(expected, torch.Tensor):
        expected, found = expected.pooler_output, found.pooler_output
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "order",
    [
        ["plain", "register", "plain"],
        ["register", "other register", "plain"],
        ["zero", "other zero", "plain", "zero"],
    ],
    ids=" -> ".join,
)
@torch.no_grad()
def test_a_compiled_hooked_model_follows_interventions_as_they_come_and_go(order):
    model = HookedViT.wrap(_shallow())
    pixels = torch.randn(2, 3, 16, 16)
    compiled = _compiled(model)
    for name in order:
        expected = _run(model, model, ARMS[name], pixels)
        assert torch.equal(_run(model, compiled, ARMS[name], pixels), expected), name


@pytest.mark.parametrize(
    ("name", "fast_cpu"),
    [
        *((name, False) for name in ("register", "zero", "attention bias", "extra token")),
        ("register", "float32"),
        ("register", "bfloat16"),
    ],
)
@torch.no_grad()
def test_a_hooked_model_under_an_intervention_compiles_as_one_graph(name, fast_cpu):
    keys = torch.ones(1, 2, 16)
    arms = {**ARMS, "attention bias": AttentionBias(keys, keys), "extra token": ExtraTokens()}
    model = HookedViT.wrap(_shallow(), fast_cpu=fast_cpu)
    pixels = torch.randn(2, 3, 16, 16)
    compiled = _compiled(model, fullgraph=True)
    assert torch.equal(compiled(pixels), model(pixels))
    expected = _run(model, model, arms[name], pixels)
    assert torch.equal(_run(model, compiled, arms[name], pixels), expected)
    assert not torch.equal(expected, model(pixels))


@torch.no_grad()
def test_hooks_without_an_intervention_are_noticed_too():
    model = HookedViT.wrap(_shallow())
    pixels = torch.randn(2, 3, 16, 16)
    compiled = _compiled(model)
    plain = compiled(pixels)
    with model.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda post, hook: post * 2)]):
        doubled = compiled(pixels)
        assert torch.equal(doubled, model(pixels))
    assert not torch.equal(doubled, plain)
    assert torch.equal(compiled(pixels), plain)


@pytest.mark.parametrize("part", ["block", "mlp", "attn"])
@pytest.mark.parametrize("arm", ["register", "zero"])
@torch.no_grad()
def test_parts_that_are_compiled_one_by_one_follow_interventions_too(part, arm):
    model = HookedViT.wrap(_shallow())
    pixels = torch.randn(2, 3, 16, 16)
    plain = model(pixels)
    with model.intervened(ARMS[arm]):
        expected = model(pixels)
    (block,) = model.blocks
    {"block": block, "mlp": block.mlp, "attn": block.attn}[part].compile(backend="eager")
    assert torch.equal(model(pixels), plain)
    with model.intervened(ARMS[arm]):
        assert torch.equal(model(pixels), expected)
    assert torch.equal(model(pixels), plain)


@torch.no_grad()
def test_a_compiled_copy_of_the_source_is_refused_inside_an_intervention():
    model = HookedViT.wrap(_shallow())
    compiled = _compiled(model.source)
    with pytest.raises(InterventionError, match="a compiled copy of the model ran"):
        _run(model, compiled, REGISTER, torch.randn(2, 3, 16, 16))
