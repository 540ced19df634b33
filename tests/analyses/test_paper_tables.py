"""The paper's benchmark tables in small: on the planted ViT each arm does what was planted."""

import json

import pytest


def value(findings, title, arm, metric=None):
    """Of one arm, and its difference from the intact model."""
    rows = [row for row in findings.numbers[title]["rows"] if row["arm"] == arm]
    row = next(row for row in rows if metric is None or row["metric"].startswith(metric))
    difference = row["difference"] and row["difference"]["estimate"]
    return row["value"]["estimate"], difference


def test_a_register_leaves_zero_shot_classification_as_it_is(found):
    findings = found("tab03_zero_shot", count=32)
    title = "zero-shot classification"
    assert value(findings, title, "intact")[0] > 60
    assert abs(value(findings, title, "register")[1]) < 7
    assert "stand-in" in findings.words.lower()


def test_a_bias_makes_up_for_zeroed_neurons_and_random_ones_cost_nothing(found):
    findings = found("tab07_attention_bias", count=32)
    title = "zero-shot classification"
    assert value(findings, title, "zero")[1] < -25
    assert abs(value(findings, title, "bias")[1]) < 7
    assert abs(value(findings, title, "random")[1]) < 7


def test_probes_cover_classes_masks_and_depth(found):
    findings = found("tab02_probes", count=6, epochs=1)
    assert list(findings.numbers) == ["linear probe", "segmentation probe", "depth probe"]
    for title in findings.numbers:
        assert {row["arm"] for row in findings.numbers[title]["rows"]} == {
            "intact",
            "register",
            "random",
        }
    assert findings.headline.count(";") == 2 and "rmse [m]: intact" in findings.headline


def test_depth_has_an_arm_for_every_number_of_registers(found):
    findings = found("tab09_depth", count=4, most=2)
    arms = [row["arm"] for row in findings.numbers["depth probe"]["rows"]]
    assert arms == ["intact", "1 register", "2 registers"]


def test_a_model_that_cannot_read_is_not_attacked(found):
    findings = found("tab12_typographic", count=16)
    success, _ = value(findings, "typographic attack", "intact")
    assert success < 40
    assert abs(value(findings, "typographic attack", "text-random")[1]) < 10


@pytest.mark.parametrize(
    ("name", "title", "metrics"),
    [
        ("tab04_attention_segmentation", "attention segmentation", 3),
        ("tab05_lost", "object discovery (LOST)", 5),
    ],
)
def test_dense_tables_tell_every_metric_of_every_arm(found, name, title, metrics):
    findings = found(name, count=4)
    arms = {row["arm"] for row in findings.numbers[title]["rows"]}
    assert {"intact", "register", "random"} <= arms
    assert len(findings.numbers[title]["rows"]) == metrics * len(arms)
    assert findings.numbers[title]["data"] == "composites 0"


@pytest.fixture(scope="module")
def talked(found):
    return found("tab06_vlm", limit=6)


def test_the_projector_gets_as_many_tokens_as_ever_and_none_is_an_outlier(talked):
    assert talked.facts["visual_tokens"] == [49]
    largest = {arm: row["largest norm"] for arm, row in talked.numbers.items()}
    assert largest["intact"].low > 10 > 1.5 > largest["register"].high
    assert largest["random"].estimate == pytest.approx(largest["intact"].estimate, rel=0.05)


def test_an_answer_stays_with_a_register_and_changes_with_zeroed_neurons(talked):
    change = {arm: row["KL"] for arm, row in talked.numbers.items()}
    assert change["intact"].estimate == pytest.approx(0, abs=1e-6)
    assert change["zero"].low > 3 * change["register"].high
    assert change["random"].high < change["register"].estimate


def test_the_planted_tower_is_the_same_model_in_transformers():
    import torch

    from analyses.paper._llava import talker
    from ttreg_interp.hooked import HookedViT
    from ttreg_interp.testbed import photographs, planted_vit

    known = talker("testbed:planted", 112)
    pixels = known.inputs(list(photographs(112).values())[:2])["pixel_values"]
    own = HookedViT.wrap(planted_vit(layout="open_clip", image_size=112).module)
    name = "blocks.11.hook_resid_post"
    with torch.no_grad():
        found, expected = (m.run_with_cache(pixels)[1][name] for m in (known.tower, own))
    assert torch.allclose(found, expected, atol=1e-3 * expected.abs().max().item())


def test_a_model_without_a_language_model_is_refused(tmp_path):
    from analyses.paper.tab06_vlm import Config, analyse
    from ttreg_interp.errors import UnsupportedModelError

    with pytest.raises(UnsupportedModelError, match="no language model behind it"):
        analyse(Config(out=tmp_path, model="timm:test_vit?random"))


def test_a_classifier_is_judged_by_its_own_head_where_images_have_labels(tmp_path):
    from analyses.paper import tab07_attention_bias, tab12_typographic
    from ttreg_interp.testbed import save_photographs

    files = save_photographs(tmp_path / "images", 160)[:4]
    lines = [f"{file.name},{place},{file.stem}" for place, file in enumerate(files)]
    table = tmp_path / "images" / "labels.csv"
    table.write_text("\n".join(["file,class_index,name", *lines]) + "\n")
    for file in set((tmp_path / "images").glob("*.png")) - set(files):
        file.unlink()
    common = {"model": "timm:test_vit?random", "neurons": "3:7", "images": str(tmp_path / "images")}
    findings = [
        script.analyse(script.Config(out=tmp_path / script.__name__, count=4, limit=4, **common))
        for script in (tab07_attention_bias, tab12_typographic)
    ]
    assert "classification" in findings[0].numbers and "bias" in findings[0].headline
    assert findings[1].numbers["typographic attack"]["n_images"] == {"test": 4}
    for one in findings:
        assert "stand-in" not in one.words and json.dumps(one.numbers)


def test_a_model_of_transformers_is_taken_with_its_processor(tmp_path):
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    from analyses.paper._llava import IMAGE, talker
    from analyses.paper.tab06_vlm import Config, analyse

    known = talker("testbed:planted", 112)
    known.vlm.save_pretrained(tmp_path)
    words = {"<pad>": 0, "<unk>": 1, "USER:": 2, "<image>": IMAGE, "ASSISTANT:": 4}
    whole = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=whole,
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    pictures = hf.CLIPImageProcessor(
        size={"shortest_edge": 112},
        crop_size=112,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    hf.LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    ).save_pretrained(tmp_path)
    told = ",".join(f"{layer}:{neuron}" for layer, neuron in known.truth)
    config = Config(out=tmp_path / "out", model=f"hf:{tmp_path}", neurons=told, limit=3)
    findings = analyse(config)
    assert findings.facts["visual_tokens"] == [49]
    assert findings.facts["neurons_from"] == "the command line"
    assert findings.numbers["intact"]["largest norm"].low > 10
    assert findings.numbers["register"]["largest norm"].high < 1.5
