"""Every family keeps every promise of a hooked model."""

from dataclasses import replace

import pytest
import torch

from tests.hooked.families import FAMILIES, make
from ttreg_interp.errors import ContractError
from ttreg_interp.hooked import HookedViT, verify

EXACT = [name for name in FAMILIES if not name.startswith("open_clip")]
"""Families whose source runs the same kernels; nn.MultiheadAttention has a fused path of its own."""


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_every_family_keeps_its_contract(name):
    verify(HookedViT.wrap(make(name))).require()


@pytest.mark.parametrize("name", EXACT)
def test_the_same_kernels_give_the_same_bits(name):
    module = make(name)
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(HookedViT.wrap(module)(pixels), module(pixels))


@pytest.mark.parametrize(
    "name", ["timm plain", "open_clip", "eva rotary, registers, packed SwiGLU"]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_contract_holds_in_other_dtypes(name, dtype):
    verify(HookedViT.wrap(make(name).to(dtype))).require()


def test_a_source_file_that_misses_a_part_is_caught():
    module = make("timm registers")
    parts = HookedViT.wrap(module).parts
    first = parts.blocks[0]
    wrong = {
        "parity": replace(
            parts, blocks=(replace(first, mlp=replace(first.mlp, gamma=None)), *parts.blocks[1:])
        ),
        "layout": replace(parts, n_trained_registers=2),
    }
    for name, broken in wrong.items():
        result = verify(HookedViT(module, broken))
        assert name in {check.name for check in result.checks if not check.passed}
        with pytest.raises(ContractError, match="breaks its contract.*add-a-model"):
            result.require()


def test_a_rotation_that_counts_from_the_front_is_caught():
    module = make("eva rotary, registers, packed SwiGLU")
    parts = HookedViT.wrap(module).parts

    def from_front(rotate):
        return lambda q, k, table: tuple(
            heads.flip(2) for heads in rotate(q.flip(2), k.flip(2), table)
        )

    blocks = tuple(
        replace(b, attn=replace(b.attn, rotate=from_front(b.attn.rotate))) for b in parts.blocks
    )
    failed = {
        check.name
        for check in verify(HookedViT(module, replace(parts, blocks=blocks))).checks
        if not check.passed
    }
    assert {"parity", "hidden token"} <= failed


def test_a_hook_point_that_changes_nothing_is_caught():
    model = HookedViT.wrap(make("timm plain"))
    mlp = model.blocks[1].mlp

    def deaf(x):
        post = mlp.parts.act(mlp.hook_pre(mlp.parts.project(x)[0]))
        mlp.hook_post(post)  # what the hook returns is dropped
        return mlp.parts.out(post)

    mlp.forward = deaf
    failed = [check for check in verify(model).checks if not check.passed]
    assert [check.name for check in failed] == ["causality"]
    assert "silent: ['blocks.1.mlp.hook_post']" in failed[0].detail
