"""The numbers of the summary: means over images, by arm and layer."""

from dataclasses import replace

import pytest
import torch

from tests.report.models import KINDS, pixels_for, tiny
from ttreg_interp.interventions import Empty, ExtraTokens, TestTimeRegister, ZeroNeurons
from ttreg_interp.metrics.trace import trace
from ttreg_interp.report import plan as plans
from ttreg_interp.report.curves import ArmCurves, read_curves, reader_rows
from ttreg_interp.report.neurons import neuron_facts
from ttreg_interp.report.record import record_run
from ttreg_interp.report.run import Run
from ttreg_interp.report.words import cards, count, sentences

ARMS = {"intact": Empty(), "register": TestTimeRegister({0: [3]}), "zeroed": ZeroNeurons({0: [3]})}


def recorded(tmp_path, model, arms=ARMS, **options) -> Run:
    return Run.load(record_run(model, pixels_for(model), arms, tmp_path, **options))


@pytest.mark.parametrize("kind", KINDS)
def test_curves_are_those_of_a_trace(tmp_path, kind):
    model = tiny(kind)
    run = recorded(tmp_path, model)
    outputs = []
    for curves, intervention in zip(read_curves(run), ARMS.values(), strict=True):
        with model.intervened(intervention):
            found = trace(model, pixels_for(model))
        norms, attention = found.patch_norms, found.attention.mean(dim=2)
        outputs.append(found.output)
        close = torch.testing.assert_close
        close(torch.tensor(curves.max_norm), norms.amax(-1).mean(-1))
        close(torch.tensor(curves.median_norm), norms.quantile(0.5, -1).mean(-1))
        largest = attention[..., found.layout.patches].amax(-1).mean(-1)
        close(torch.tensor(curves.max_attention), largest)
        if found.layout.n_test_time_registers:
            drawn = found.register_attention.mean(-1).mean(-1)
            close(torch.tensor(curves.register_attention), drawn)
        else:
            assert curves.register_attention is None
        cosine = torch.cosine_similarity(found.output, outputs[0]).mean()
        assert curves.output_cosine == pytest.approx(float(cosine), abs=1e-5)


@pytest.mark.parametrize("kind", ["[CLS]", "no [CLS]", "non-square"])
@pytest.mark.parametrize("budget", [10**7, 40_000, 4_000])
def test_the_reader_is_the_same_from_blocks(tmp_path, monkeypatch, kind, budget):
    monkeypatch.setattr(plans, "BUDGET", {"tokens": budget, "heads": budget})
    model = tiny(kind, depth=2)
    run = recorded(tmp_path, model)
    expected = trace(model, pixels_for(model)).attention.mean(dim=2).transpose(0, 1)
    torch.testing.assert_close(reader_rows(run, 0), expected)


def arm(name: str, **changes) -> ArmCurves:
    values = {
        "max_norm": (1.0, 50.0),
        "median_norm": (1.0, 5.0),
        "max_over_median": (1.0, 10.0),
        "max_attention": (0.02, 0.25),
        "register_attention": None,
        "output_cosine": 1.0,
    }
    return ArmCurves(name=name, **(values | changes))


INFO = {
    "images": [{"name": "a.png"}],
    "model": {"name": "m"},
    "arms": [{"layout": {"n_cls": 1}}],
}
REGISTER = arm("reg", max_over_median=(1.0, 2.0), max_attention=(0.01, 0.05), register_attention=(0.1, 0.4), output_cosine=0.5)  # fmt: skip


def test_the_summary_says_what_changed_and_where():
    assert sentences(INFO, [arm("intact"), REGISTER]) == [
        "1 image through m under 2 arms. All numbers here are means over these images.",
        "The largest patch norm is 10 times the median in layer 1 of “intact”; 2 times under “reg”.",
        "[CLS] gives one patch 25.0% of its attention in layer 1 of “intact”; 5.0% under “reg”.",
        "Under “reg” the added tokens draw up to 40.0% of that attention, in layer 1.",
    ]


def test_one_arm_is_compared_with_nothing():
    said = sentences(INFO, [arm("intact")])
    assert said[1] == "The largest patch norm is 10 times the median in layer 1 of “intact”."
    assert [card["title"] for card in cards(INFO, [arm("intact")])] == [
        "Largest / median patch norm, layer 1",
        "Largest attention of [CLS] to one patch, layer 1",
        "Cosine of the output to that of “intact”",
    ]


def test_a_model_without_cls_is_read_by_its_mean_patch():
    info = INFO | {"arms": [{"layout": {"n_cls": 0}}]}
    assert sentences(info, [arm("intact")])[2].startswith("The mean patch gives one patch")


def test_cards_compare_the_arms_on_one_scale():
    norm, attention, added, cosine = cards(INFO, [arm("intact"), REGISTER])
    assert [value["text"] for value in norm["values"]] == ["10", "2"]
    assert [value["share"] for value in norm["values"]] == [1.0, 0.2]
    assert [value["text"] for value in attention["values"]] == ["25.0%", "5.0%"]
    assert [value["text"] for value in added["values"]] == ["–", "40.0%"]
    assert [value["text"] for value in cosine["values"]] == ["1.0000", "0.5000"]


def test_a_share_that_is_small_is_not_said_to_be_nothing():
    small = replace(REGISTER, max_attention=(1e-5, 1e-5))
    _, attention, *_ = cards(INFO, [arm("intact"), small])
    assert attention["values"][1]["text"] == "<0.1%"


def test_counts_agree_with_their_noun():
    assert (count(0, "image"), count(1, "image"), count(2, "image")) == (
        "0 images",
        "1 image",
        "2 images",
    )


def test_neuron_facts_are_counted_on_the_patches(tmp_path):
    model = tiny()
    neurons = {0: [5], 2: [11]}
    run = recorded(tmp_path, model, {"intact": Empty(), "added": ExtraTokens(1)}, neurons=neurons)
    _, cache = model.run_with_cache(pixels_for(model))
    norms = cache["resid_post", 2].norm(dim=-1)[:, 1:]
    for fact, (layer, neuron) in zip(neuron_facts(run), [(0, 5), (2, 11)], strict=True):
        size = cache["post", layer][:, 1:, neuron].abs()
        assert (fact.layer, fact.neuron) == (layer, neuron)
        assert fact.largest == pytest.approx(float(size.amax(1).mean()), rel=1e-4)
        active = (size > size.amax(1, keepdim=True) / 2).float().mean()
        assert fact.share_active == pytest.approx(float(active), rel=1e-4)
        pairs = zip(size, norms, strict=True)
        each = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs]
        assert fact.norm_correlation == pytest.approx(sum(each) / len(each), abs=1e-4)


def test_a_silent_neuron_correlates_with_nothing(tmp_path):
    run = recorded(tmp_path, tiny(), {"zeroed": ZeroNeurons({0: [3]})}, neurons={0: [3]})
    (fact,) = neuron_facts(run)
    assert (fact.largest, fact.share_active, fact.norm_correlation) == (0.0, 0.0, 0.0)
