"""Zero-shot: classes from open_clip's names and templates, and the activation function as trained."""

import open_clip
import pytest
import torch

from ttreg_interp.errors import DataError
from ttreg_interp.evaluations.classification import ZeroShot
from ttreg_interp.evaluations.run import evaluate
from ttreg_interp.evaluations.text import (
    Prompts,
    activation_notes,
    activation_of,
    classifier_of,
    trained_with,
)
from ttreg_interp.hooked import HookedViT
from ttreg_interp.hooked.text import TextTower
from ttreg_interp.interventions import TestTimeRegister

from .small import CLASSES, classifier, images_of


def clip(quick_gelu: bool = False) -> HookedViT:
    """A tiny open_clip model with its text tower and its own tokenizer."""
    from open_clip.model import CLIP

    torch.manual_seed(0)
    source = CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2},
        text_cfg={"context_length": 77, "width": 16, "heads": 2, "layers": 1},
        quick_gelu=quick_gelu,
    ).eval()
    model = HookedViT.wrap(source)
    model.text = TextTower(source, open_clip.get_tokenizer("ViT-B-32"), source.encode_text)
    return model


@pytest.fixture(scope="module")
def model():
    return clip()


def test_zero_shot_is_that_of_open_clip(model, tmp_path):
    data = images_of(int, 9)
    protocol = ZeroShot(Prompts(names="data", templates="simple-7"))
    arm = TestTimeRegister({0: [3, 5]})
    found = evaluate(protocol, model, data, {"register": arm}, tmp_path)
    source = model.text.module
    with torch.no_grad():
        weights = open_clip.build_zero_shot_classifier(
            source,
            open_clip.get_tokenizer("ViT-B-32"),
            CLASSES,
            open_clip.SIMPLE_IMAGENET_TEMPLATES,
        )
        pixels = torch.stack([model.preprocess(item.read_image()) for item in data.items])
        truth = torch.tensor([item.read()[1] for item in data.items])
        logits = source.encode_image(pixels, normalize=True) @ weights
        with model.intervened(arm):
            moved = model(pixels) @ weights
    for name, values in {"intact": logits, "register": moved}.items():
        expected = 100 * (values.argmax(dim=1) == truth).double().mean().item()
        assert found[name, "top-1 %"].value.estimate == pytest.approx(expected)
    assert torch.allclose(classifier_of(model, protocol.prompts, CLASSES), weights.T, atol=1e-5)


def test_imagenet_has_open_clips_names_and_eighty_templates():
    prompts = Prompts()
    names = prompts.classes(())
    assert len(names) == 1000 and names[1] == "goldfish"
    assert len(prompts.of("goldfish")) == 80
    assert Prompts(templates="photo").of("goldfish") == ["a photo of a goldfish."]


@pytest.mark.parametrize("quick", [True, False])
def test_the_activation_function_is_found_by_applying_it(quick):
    assert activation_of(clip(quick)) == ("quick gelu" if quick else "gelu")


@pytest.mark.parametrize(
    ("act", "expected"),
    [(torch.nn.SiLU, "silu"), (torch.nn.ReLU, "relu"), (torch.nn.Tanh, "other")],
)
def test_other_activation_functions_have_names_too(act, expected):
    assert activation_of(classifier(act_layer=act)) == expected


def test_gelu_by_tanh_is_told_apart():
    from functools import partial

    assert activation_of(classifier(act_layer=partial(torch.nn.GELU, "tanh"))) == "gelu tanh"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("open_clip:ViT-B-16/openai", "quick gelu"),
        ("open_clip:ViT-B-16/laion2b_s34b_b88k", "gelu"),
        ("open_clip:ViT-B-16@weights.pt", None),
        ("hf:openai/clip-vit-base-patch16", None),
        (None, None),
    ],
)
def test_open_clip_says_what_weights_were_trained_with(spec, expected):
    assert trained_with(spec) == expected


@pytest.mark.parametrize(
    ("spec", "quick", "words"),
    [
        ("open_clip:ViT-B-16/openai", False, "trained with quick gelu"),
        ("open_clip:ViT-B-16/laion2b_s34b_b88k", True, "trained with gelu"),
    ],
)
def test_a_mismatch_is_detected_and_reported_with_the_result(spec, quick, words, tmp_path, caplog):
    model = clip(quick)
    model.spec = spec
    found = evaluate(ZeroShot(Prompts("data", "photo")), model, images_of(int, 3), {}, tmp_path)
    assert words in found.config["notes"]["intact"]["warning"]
    assert words in str(found) and words in caplog.text


def test_a_match_gives_no_warning(model):
    model.spec = "open_clip:ViT-B-16/laion2b_s34b_b88k"
    assert activation_notes(model) == {"activation": "gelu", "trained with": "gelu"}


def test_a_model_without_text_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no text tower"):
        evaluate(ZeroShot(), classifier(), images_of(int, 3), {}, tmp_path)


# ------------------------------------------------------------------ SigLIP


def siglip(keeps_case: bool) -> HookedViT:
    """A tiny SigLIP of transformers, with a tokenizer of letters that keeps the case or does not."""
    import transformers as hf

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    source = hf.SiglipModel(
        hf.SiglipConfig(
            vision_config={**sizes, "intermediate_size": 32, "image_size": 32, "patch_size": 8},
            text_config={
                **sizes,
                "intermediate_size": 32,
                "vocab_size": 128,
                "max_position_embeddings": 64,
            },
        )
    ).eval()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter += 0.3 * torch.randn_like(parameter)

    def tokenize(texts):
        cased = texts if keeps_case else [text.lower() for text in texts]
        return torch.tensor([[ord(c) % 128 for c in text[:64].ljust(64, "\0")] for text in cased])

    model = HookedViT.wrap(source)
    model.preprocess = classifier().preprocess
    encode = lambda tokens: source.get_text_features(tokens).pooler_output  # noqa: E731
    model.text = TextTower(source, tokenize, encode)
    return model


@pytest.mark.parametrize("keeps_case", [True, False])
def test_siglip_reads_lower_case_and_its_sigmoid_keeps_the_order_of_cosines(keeps_case, tmp_path):
    model, data = siglip(keeps_case), images_of(int, 9)
    protocol = ZeroShot(Prompts("data", "photo"))
    found = evaluate(protocol, model, data, {}, tmp_path)
    texts = [f"a photo of a {name}." for name in CLASSES]
    assert [text.lower() for text in texts] == texts
    pixels = torch.stack([model.preprocess(item.read_image()) for item in data.items])
    with torch.no_grad():
        tokens = model.text.tokenize(texts)
        chances = model.text.module(
            input_ids=tokens, pixel_values=pixels
        ).logits_per_image.sigmoid()
    truth = torch.tensor([item.read()[1] for item in data.items])
    expected = 100 * (chances.argmax(dim=1) == truth).double().mean().item()
    assert found["intact", "top-1 %"].value.estimate == pytest.approx(expected)
    assert found.config["notes"]["intact"]["texts"] == "in lower case"
    upper = classifier_of(model, protocol.prompts, [name.upper() for name in CLASSES])
    assert torch.equal(upper, classifier_of(model, protocol.prompts, CLASSES))


def test_clip_reads_texts_as_they_are(model):
    assert "texts" not in activation_notes(model)


# ------------------------------------------------------------------ the order of classes

KERAS = ("tench", "goldfish", "great_white_shark", "tiger_shark", "hammerhead", "electric_ray")


@pytest.mark.parametrize(
    "names",
    [(), KERAS, (*KERAS, "stingray", "cock"), ("", "goldfish"), ("", ""), ("n01440764",) * 1000],
)
def test_names_that_fit_imagenets_order_are_taken(names):
    assert len(Prompts().classes(names)) == 1000


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (CLASSES, "of the set's 3 names only 0 agree, 'ash' stands where ImageNet has 'tench'"),
        (KERAS[::-1], "names only"),
        (("n01440764", "n01443537"), "the set has 2 classes"),
        (("cat",) * 1001, "the set has 1001 classes"),
    ],
)
def test_another_order_of_classes_is_refused(names, words):
    with pytest.raises(DataError, match=words):
        Prompts().classes(names)


@pytest.mark.parametrize(("names", "words"), [((), "none has"), (("a", ""), "class 1 has none")])
def test_classes_without_a_name_have_no_text(names, words):
    with pytest.raises(DataError, match=f"need names for a text: {words}"):
        Prompts("data").classes(names)
