"""Programs and ONNX files are the hooked model at any batch size, without this package's code."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from tests.hooked import families
from tests.hooked.sources import hf_families
from ttreg_interp.deploy import export as exporting
from ttreg_interp.deploy.export import export, to_onnx
from ttreg_interp.errors import ArtifactError, InterventionError
from ttreg_interp.hooked import HookedViT, weights_hash
from ttreg_interp.interventions import (
    AttentionBias,
    DeleteTokens,
    Empty,
    Intervention,
    LargestNorms,
    PatchActivation,
    TestTimeRegister,
    ZeroNeurons,
)

REGISTER = TestTimeRegister({0: [3, 5], 1: [7]}, multiplicity=2.0, visible_from_layer=1)


@pytest.fixture(scope="module")
def clip() -> HookedViT:
    return HookedViT.wrap(families.make("open_clip"))


@pytest.fixture(scope="module")
def dinov3() -> HookedViT:
    """Rotary, with trained registers."""
    return HookedViT.wrap(hf_families.FAMILIES["DINOv3"]())


@pytest.fixture(scope="module")
def folder(dinov3, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export(dinov3, REGISTER, folder / "clean.pt2", "both")
    to_onnx(dinov3, REGISTER, folder / "clean.onnx", "both")
    return folder


def _close(found: Sequence[Any], expected: Sequence[torch.Tensor]) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(mine), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_images", [1, 5])
@torch.no_grad()
def test_a_program_takes_any_number_of_images(dinov3, folder, n_images):
    run = torch.export.load(folder / "clean.pt2").module()
    pixels = torch.randn(n_images, 3, *dinov3.image_size)
    with dinov3.intervened(REGISTER):
        _close(run(pixels), dinov3(pixels, "both"))


@pytest.mark.parametrize("n_images", [1, 5])
@torch.no_grad()
def test_onnxruntime_takes_any_number_of_images(dinov3, folder, n_images):
    session = onnxruntime.InferenceSession(folder / "clean.onnx")
    assert session.get_inputs()[0].shape[0] == "batch"
    pixels = torch.randn(n_images, 3, *dinov3.image_size)
    with dinov3.intervened(REGISTER):
        expected = dinov3(pixels, "both")
    _close(session.run(["output", "tokens"], {"pixels": pixels.numpy()}), expected)


@torch.no_grad()
def test_an_attention_bias_and_edits_outside_the_blocks_are_exported_too(clip, tmp_path):
    shape = (clip.cfg.n_layers, clip.cfg.n_heads, clip.cfg.d_head)
    bias = AttentionBias(torch.randn(shape), torch.randn(shape), copies=3.0)
    edit = ZeroNeurons({0: [3]}) + bias + PatchActivation("hook_pooled", torch.ones(32), dims=(5,))
    run = torch.export.load(export(clip, edit, tmp_path / "biased.pt2")).module()
    pixels = torch.randn(4, 3, 32, 32)
    with clip.intervened(edit):
        _close([run(pixels)], [clip(pixels)])


def test_a_file_says_what_is_inside(dinov3, folder):
    extra = {"provenance.json": ""}
    torch.export.load(folder / "clean.pt2", extra_files=extra)
    session = onnxruntime.InferenceSession(folder / "clean.onnx")
    metadata = session.get_modelmeta().custom_metadata_map
    for document in (extra["provenance.json"], metadata["provenance"]):
        said = json.loads(document)
        assert Intervention.from_dict(said["intervention"]) == REGISTER
        assert said["weights_hash"] == weights_hash(dinov3.source)
        assert said["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_nothing_else_is_left_behind(folder):
    assert {path.name for path in folder.iterdir()} == {"clean.pt2", "clean.onnx"}


def test_a_file_that_is_not_the_hooked_model_is_not_written(clip, tmp_path, monkeypatch):
    freeze = exporting.freeze
    monkeypatch.setattr(exporting, "freeze", lambda model, _: freeze(model, Empty()))
    with pytest.raises(InterventionError, match="differs by .* from the hooked model's"):
        export(clip, REGISTER, tmp_path / "wrong.pt2")
    assert not list(tmp_path.iterdir())


def test_an_intervention_that_looks_at_values_is_refused(clip, tmp_path):
    look = DeleteTokens(LargestNorms(3, layer=0), before_layer=1)
    with pytest.raises(InterventionError, match="cannot be traced into a program"):
        export(clip, look, tmp_path / "look.pt2")
    assert not list(tmp_path.iterdir())


def test_a_file_needs_a_folder(clip, tmp_path):
    with pytest.raises(ArtifactError, match="Make it first"):
        export(clip, REGISTER, tmp_path / "missing" / "clean.pt2")
