"""Where only a trace goes: towers inside larger models, models without a source file, servers."""

import copy
from pathlib import Path

import pytest
import torch

pytest.importorskip("nnsight", reason="nnsight is not installed (pip install nnsight)")

import transformers as hf

from tests.backends import memory_plan
from tests.backends.maps import UNKNOWN_SHAPE, UNKNOWN_SITES
from tests.backends.towers import SIZE
from tests.hooked.sources.hf_families import llava, randomised
from tests.interventions.models import GRID, images
from ttreg_interp.backends.nnsight import TracedLM, TracedViT
from ttreg_interp.backends.sites import BlockSites, SiteMap
from ttreg_interp.discovery import FindConfig, find_outliers, find_register_neurons
from ttreg_interp.errors import InterventionError, UnsupportedModelError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.interventions import ClippedSoftmax, MaskTokens, TestTimeRegister
from ttreg_interp.testbed import photograph_tensor, planted_vit

TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
REGISTER = TestTimeRegister({0: [3, 50], 1: [7]}, n_registers=2)
IDS = torch.tensor([[1, *[3] * GRID**2, 5, 6]])


@pytest.fixture(scope="module")
def vlm():
    """A LLaVA whose language model reads the hidden states before CLIP's last block."""
    vision = hf.CLIPVisionModel(hf.CLIPVisionConfig(**SIZE))
    return randomised(llava(hf.LlavaForConditionalGeneration, vision))


def test_a_register_in_the_tower_of_a_vlm_changes_what_the_language_model_reads_and_no_more(vlm):
    hooked = HookedViT.wrap(copy.deepcopy(vlm))
    traced = TracedViT.trace(copy.deepcopy(vlm))
    inputs = {"input_ids": IDS, "pixel_values": images(1)}
    with hooked.intervened(REGISTER):
        resid = hooked(images(1), stop_at_layer=2)
    patches = hooked.layout().of_length(resid.shape[1]).drop_registers(resid)[:, 1:]
    embedded = vlm.get_input_embeddings()(IDS).clone()
    embedded[:, 1 : 1 + GRID**2] = vlm.model.multi_modal_projector(patches)
    expected = vlm(inputs_embeds=embedded).logits
    with traced.intervened(REGISTER):
        found, cache = traced.run_with_cache(**inputs)
    torch.testing.assert_close(found.logits, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found.logits, vlm(**inputs).logits, atol=1e-4)
    assert cache["blocks.2.hook_resid_post"].shape[1] == cache.layout.n_tokens == GRID**2 + 3
    torch.testing.assert_close(traced(**inputs).logits, vlm(**inputs).logits)


def test_the_tower_of_a_vlm_runs_alone_too(vlm):
    hooked = HookedViT.wrap(copy.deepcopy(vlm))
    traced = TracedViT.trace(copy.deepcopy(vlm))
    with hooked.intervened(REGISTER), traced.intervened(REGISTER):
        torch.testing.assert_close(traced(images(2)), hooked(images(2)))


def test_scores_and_neurons_through_nnsight_are_those_of_the_hooked_model():
    planted = planted_vit(depth=6, image_size=112)
    pixels = photograph_tensor(112)[:8]
    config = FindConfig(batch_size=4, evidence=False)
    expected = find_register_neurons(HookedViT.wrap(copy.deepcopy(planted.module)), pixels, config)
    found = find_register_neurons(TracedViT.trace(planted.module), pixels, config)
    assert found.by_layer() == expected.by_layer()
    assert len(found.neurons) > 0
    for mine, theirs in zip(found.ranking, expected.ranking, strict=True):
        assert mine[:2] == theirs[:2]
        assert mine[2] == pytest.approx(theirs[2], rel=1e-5, abs=1e-6)


def test_a_model_without_a_source_file_runs_by_a_map_of_its_sites(unknown, spelled_out):
    pixels = images(2)
    plain = unknown(pixels)
    with spelled_out.intervened(MaskTokens((1, 2), from_layer=1)):
        masked, cache = spelled_out.run_with_cache(pixels)
    pattern = cache["blocks.1.attn.hook_pattern"]
    torch.testing.assert_close(pattern.sum(dim=-1), torch.ones(2, 2, 17))
    assert (pattern[..., 1:3] == 0).all() and (pattern[..., 3:] > 0).all()
    assert not torch.equal(masked, plain)
    with spelled_out.intervened(REGISTER, ClippedSoftmax(alpha=0.5)):
        edited, cache = spelled_out.run_with_cache(pixels)
    assert edited.shape == plain.shape
    assert cache["blocks.2.hook_resid_post"].shape[1] == 1 + 2 + GRID**2
    post = cache["blocks.0.mlp.hook_post"][:, :, [3, 50]]
    assert (post[:, 0] == 0).all() and (post[:, 3:] == 0).all() and (post[:, 1:3] != 0).any()
    torch.testing.assert_close(spelled_out(pixels), plain)


def test_outliers_of_a_model_without_a_source_file_are_counted(spelled_out):
    report = find_outliers(spelled_out, images(4), FindConfig(batch_size=2))
    assert report.n_images == 4 and len(report.layers) == UNKNOWN_SHAPE.n_layers


def test_what_a_map_does_not_tell_is_refused_when_it_is_asked_for(spelled_out):
    with pytest.raises(UnsupportedModelError, match=r"does not tell the weights of q, k and v\."):
        _ = spelled_out.W_Q
    with pytest.raises(UnsupportedModelError, match="does not tell how tokens are pooled|the head"):
        spelled_out._read(torch.zeros(1, 17, 32), spelled_out.layout(), "output")


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        (
            BlockSites("norm", "mixer.proj", "n2", "ff.down"),
            "'stages.0.norm', but .* has no such module",
        ),
        (
            BlockSites("n1", "mixer.drop", "n2", "ff.down"),
            "'stages.0.mixer.drop' is a torch Dropout",
        ),
    ],
)
def test_a_map_that_does_not_fit_is_refused(unknown, inside, message):
    with pytest.raises(UnsupportedModelError, match=message):
        TracedViT.trace(unknown, SiteMap("stages.{layer}", inside), UNKNOWN_SHAPE)


def test_sites_and_shape_come_together(unknown):
    with pytest.raises(UnsupportedModelError, match="give both, or neither"):
        TracedViT.trace(unknown, UNKNOWN_SITES)
    with pytest.raises(UnsupportedModelError, match="No source file knows .*Unknown"):
        TracedViT.trace(unknown)


class Server:
    """Stands where nnsight hands a trace over: it notes what it was asked, and runs it here."""

    def __init__(self, envoy):
        self.asked = []
        self.trace_here = envoy.trace
        envoy.__dict__["trace"] = self.trace

    def trace(self, *inputs, remote=False, **kwargs):
        self.asked.append(remote)
        return self.trace_here(*inputs, **kwargs)


@pytest.mark.parametrize("remote", [True, "https://a.server"])
def test_remote_is_handed_to_nnsight_with_the_interventions(remote, vlm):
    here = TracedViT.trace(copy.deepcopy(vlm))
    there = TracedViT.trace(copy.deepcopy(vlm), remote=remote)
    server = Server(there.envoy)
    inputs = {"input_ids": IDS, "pixel_values": images(1)}
    with here.intervened(REGISTER), there.intervened(REGISTER):
        torch.testing.assert_close(there(**inputs).logits, here(**inputs).logits)
    assert server.asked == [remote]
    assert there.n_added_tokens == 0
    with pytest.raises(InterventionError, match="hooks would run on the server"):
        there.run_with_cache(**inputs)


def test_without_remote_nothing_is_asked_of_a_server(vlm):
    traced = TracedViT.trace(copy.deepcopy(vlm))
    server = Server(traced.envoy)
    traced(images(1))
    assert server.asked == [False]


PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "nnsight.md"


def test_the_docs_tables_of_memory_are_what_models_on_meta_count():
    page = PAGE.read_text()
    for table in memory_plan.tables():
        assert table in page, "run python -m tests.backends.memory_plan and copy its tables"


def test_registers_in_six_and_seventy_billion_parameters_are_planned_without_memory():
    tower = TracedViT.trace(memory_plan.vision_model())
    assert tower.cfg.n_layers == 45 and tower.cfg.d_mlp == 12800
    with torch.no_grad(), tower.intervened(TestTimeRegister({10: [1, 2]})):
        resid = tower(torch.zeros(1, 3, 448, 448, device="meta"), stop_at_layer=12)
    assert resid.is_meta and resid.shape == (1, 1 + 1 + 32 * 32, 3200)
    language = TracedLM.trace(memory_plan.language_model())
    with torch.no_grad(), language.intervened(TestTimeRegister({2: [1, 2]}, fill="same")):
        resid = language(torch.zeros(1, 16, dtype=torch.long, device="meta"), stop_at_layer=4)
    assert resid.is_meta and resid.shape == (1, 17, 8192)


QWENS = {
    hf.Qwen2VLForConditionalGeneration: {"embed_dim": 16},
    hf.Qwen2_5_VLForConditionalGeneration: {"out_hidden_size": 16, "intermediate_size": 32},
}


@pytest.mark.parametrize("model_class", QWENS)
def test_towers_that_pack_images_into_one_sequence_are_refused(model_class):
    size = {"depth": 2, "num_heads": 2, "hidden_size": 16, "patch_size": 8}
    text = {**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    config = model_class.config_class(
        text_config=text, vision_config={**size, **QWENS[model_class]}
    )
    with torch.device("meta"):
        module = model_class(config)
    for wrap in (TracedViT.trace, HookedViT.wrap):
        with pytest.raises(UnsupportedModelError, match="packs the patches .* LLaVA-"):
            wrap(module)


def test_kernels_whose_masks_cannot_be_handed_on_are_refused(vlm):
    tower = copy.deepcopy(vlm.model.vision_tower)
    tower.config._attn_implementation = "flex_attention"
    with pytest.raises(UnsupportedModelError, match="attends by 'flex_attention'.*sdpa"):
        TracedViT.trace(tower)
