"""Where only a trace goes: towers inside larger models, models without a source file, servers."""

import copy

import pytest
import torch

pytest.importorskip("nnsight", reason="nnsight is not installed (pip install nnsight)")

import transformers as hf

from tests.backends.maps import UNKNOWN_SHAPE, UNKNOWN_SITES
from tests.backends.towers import SIZE
from tests.hooked.sources.hf_families import llava, randomised
from tests.interventions.models import GRID, images
from ttreg_interp.backends.nnsight import TracedViT
from ttreg_interp.backends.sites import BlockSites, SiteMap
from ttreg_interp.discovery import FindConfig, find_outliers, find_register_neurons
from ttreg_interp.errors import InterventionError, UnsupportedModelError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.interventions import ClippedSoftmax, MaskTokens, TestTimeRegister
from ttreg_interp.testbed import photograph_tensor, planted_vit

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


BILLIONS = {
    # InternViT-6B: 45 blocks of width 3200, 25 heads, MLP 12800, patches of 14 pixels at 448
    "vision": (
        hf.InternVLVisionModel,
        {
            "hidden_size": 3200,
            "num_hidden_layers": 45,
            "num_attention_heads": 25,
            "intermediate_size": 12800,
            "image_size": 448,
            "patch_size": 14,
            "norm_type": "rms_norm",
            "use_qk_norm": True,
        },
    ),
}


def test_a_tower_of_six_billion_parameters_is_planned_without_memory():
    model_class, size = BILLIONS["vision"]
    with torch.device("meta"):
        module = model_class(model_class.config_class(**size)).eval()
    parameters = sum(parameter.numel() for parameter in module.parameters())
    assert 5.4e9 < parameters < 6.1e9
    traced = TracedViT.trace(module)
    assert traced.cfg.n_layers == 45 and traced.cfg.d_mlp == 12800
    with traced.intervened(TestTimeRegister({10: [1, 2]})):
        resid = traced(torch.zeros(1, 3, 448, 448, device="meta"), stop_at_layer=12)
    assert resid.device.type == "meta"
    assert resid.shape == (1, 1 + 1 + 32 * 32, 3200)
