"""A saved folder loads to the same model with the same intervention, or not at all."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.hooked import families
from tests.hooked.sources import hf_families
from ttreg_interp.deploy.pretrained import from_pretrained, save_pretrained
from ttreg_interp.errors import ArtifactError, InterventionError, UnsupportedModelError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.hooked.sources import parts_of
from ttreg_interp.interventions import (
    AttentionBias,
    Empty,
    Intervention,
    TestTimeRegister,
    ZeroNeurons,
)

REGISTER = TestTimeRegister({0: [3, 5], 1: [7]}, multiplicity=2.0)
ZERO = ZeroNeurons({0: [3]}) + ZeroNeurons({1: [7, 9]})


def _model(name: str) -> HookedViT:
    return HookedViT.wrap(hf_families.FAMILIES[name]())


def _hooked(model: HookedViT, intervention: Intervention, pixels: torch.Tensor) -> torch.Tensor:
    with model.intervened(intervention):
        return model(pixels)


@pytest.mark.parametrize(
    "name", ["DINOv2", "DINOv3", "ViT classifier", "CLIP", "CLIP tower, projected", "SigLIP tower"]
)
@torch.no_grad()
def test_a_folder_holds_model_and_intervention(name, tmp_path):
    model = _model(name)
    pixels = torch.randn(2, 3, *model.image_size)
    loaded = from_pretrained(save_pretrained(model, REGISTER, tmp_path / "clean"))
    assert type(loaded) is type(model.source)
    assert not loaded.training
    assert torch.equal(parts_of(loaded)[1].reference(pixels), _hooked(model, REGISTER, pixels))


@torch.no_grad()
def test_stored_tensors_survive(tmp_path):
    model = _model("DINOv2")
    bias = AttentionBias(torch.randn(2, 2, 16), torch.randn(2, 2, 16))
    pixels = torch.randn(2, 3, *model.image_size)
    loaded = from_pretrained(save_pretrained(model, bias, tmp_path / "biased"))
    assert torch.equal(loaded(pixels).pooler_output, _hooked(model, bias, pixels))


@torch.no_grad()
def test_half_precision_survives(tmp_path):
    model = _model("DINOv2").to(torch.bfloat16)
    loaded = from_pretrained(save_pretrained(model, REGISTER, tmp_path / "half"))
    pixels = torch.randn(2, 3, *model.image_size, dtype=torch.bfloat16)
    assert torch.equal(loaded(pixels).pooler_output, _hooked(model, REGISTER, pixels))


def test_readers_may_ask_for_the_registers(tmp_path):
    folder = save_pretrained(_model("DINOv2"), REGISTER, tmp_path / "clean")
    assert from_pretrained(folder).num_prefix_tokens == 1
    assert from_pretrained(folder, drop_registers=False).num_prefix_tokens == 2


class TestTransformersByItself:
    @pytest.mark.parametrize("intervention", [ZERO, Empty()], ids=["zero", "empty"])
    @torch.no_grad()
    def test_loads_what_weights_can_hold(self, intervention, tmp_path):
        model = _model("DINOv2 SwiGLU")
        pixels = torch.randn(2, 3, *model.image_size)
        folder = save_pretrained(model, intervention, tmp_path / "plain")
        expected = _hooked(model, intervention, pixels)
        for loaded in (transformers.AutoModel.from_pretrained(folder), from_pretrained(folder)):
            assert torch.equal(loaded(pixels).pooler_output, expected)

    def test_finds_no_model_that_would_run_without_the_intervention(self, tmp_path):
        folder = save_pretrained(_model("DINOv2"), REGISTER, tmp_path / "clean")
        with pytest.raises((OSError, ValueError)):
            transformers.AutoModel.from_pretrained(folder, local_files_only=True)

    def test_finds_the_source_as_it_was(self, tmp_path):
        model = _model("DINOv2")
        folder = save_pretrained(model, REGISTER, tmp_path / "clean")
        source = transformers.AutoModel.from_pretrained(folder / "source")
        assert all(
            torch.equal(mine, theirs)
            for mine, theirs in zip(source.parameters(), model.source.parameters(), strict=True)
        )
        assert not list(folder.rglob("*.py")) + list(folder.rglob("*.bin"))


class TestRefused:
    @pytest.fixture
    def folder(self, tmp_path):
        return save_pretrained(_model("DINOv2"), REGISTER, tmp_path / "clean")

    def test_other_weights(self, folder):
        weights = folder / "source" / "model.safetensors"
        state = load_file(weights)
        state["layernorm.weight"] += 1
        save_file(state, weights, metadata={"format": "pt"})
        with pytest.raises(ArtifactError, match="weights have hash .* changed or replaced"):
            from_pretrained(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"schema": "pretrained/0"}, "not of schema"),
            ({"class": "os"}, "no model class"),
            ({"class": "Dinov2Config"}, "no model class"),
            ({"intervention": {"kind": "Unheard"}}, "Unknown kind"),
        ],
    )
    def test_another_record(self, folder, change, message):
        record = folder / "intervention.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
        with pytest.raises(ArtifactError, match=message):
            from_pretrained(folder)

    def test_no_record(self, tmp_path):
        with pytest.raises(ArtifactError, match=r"tt\.save_pretrained made"):
            from_pretrained(tmp_path)

    def test_a_folder_that_is_taken(self, folder):
        with pytest.raises(ArtifactError, match="exists and is not empty"):
            save_pretrained(_model("DINOv2"), REGISTER, folder)

    def test_a_source_that_is_not_of_transformers(self, tmp_path):
        model = HookedViT.wrap(families.make("timm plain"))
        with pytest.raises(UnsupportedModelError, match=r"tt\.export or tt\.to_onnx"):
            save_pretrained(model, REGISTER, tmp_path / "clean")

    def test_an_intervention_that_does_not_fit_leaves_nothing_behind(self, tmp_path):
        for edit in (TestTimeRegister({0: [9999]}), ZeroNeurons({0: [9999]})):
            with pytest.raises(InterventionError, match="9999"):
                save_pretrained(_model("DINOv2"), edit, tmp_path / "clean")
        assert not list(tmp_path.iterdir())
