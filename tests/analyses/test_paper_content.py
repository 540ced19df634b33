"""Analyses of what tokens hold and give: on the planted ViT each says what was planted."""

import pytest


def test_a_probe_reads_a_register_that_is_all_but_the_same_vector_in_every_image(found):
    numbers = found("tab01_probes", n_images=8, n_each=6).numbers
    accuracy, alike = numbers["accuracy"], numbers["cosine_between_crops"]
    assert accuracy["test-time register"].estimate > 3 * numbers["chance"]
    assert alike["test-time register"].low > 0.999 > alike["[CLS]"].high
    assert accuracy["[CLS]"].estimate > accuracy["another patch"].estimate


def test_registers_share_what_one_gives(found):
    numbers = found("tab08_value_update", most=3).numbers
    assert numbers["cosine_of_update"][1].estimate == pytest.approx(1)
    assert all(value.low > 0.9 for value in numbers["cosine_of_update"].values())
    assert all(value.low > 0.9 for value in numbers["attention"].values())


def test_one_register_is_enough(found):
    numbers = found("tab09_number", most=2).numbers
    rows = {
        (row["arm"], row["metric"].split(" >")[0]): row["value"]["estimate"]
        for row in numbers["rows"]
    }
    assert rows["intact", "outliers"] > 1 and rows["1", "outliers"] == 0 == rows["2", "outliers"]
    assert rows["1", "relative change"] < 0.1
    assert rows["1, nothing moved", "outliers"] == rows["intact", "outliers"]


def test_what_a_register_starts_from_does_not_change_the_output(found):
    numbers = found("tab10_init", n_images=6, n_each=3).numbers
    assert all(value.low > 0.99 for value in numbers["cosine_of_output"].values())


def test_zeroing_breaks_cls_a_register_keeps_it_and_random_neurons_do_nothing(found):
    findings = found("reb_ablations", n_controls=2)
    value = {
        row["arm"]: row["value"]["estimate"]
        for row in findings.numbers["comparison"]["rows"]
        if row["metric"] == "relative change"
    }
    assert value["zeroed"] > 0.5 > 0.1 > value["register"]
    assert (
        value["random neurons zeroed"] < 0.05 and value["random neurons moved to a register"] < 0.05
    )
    differing = {(t["arm"], t["metric"]) for t in findings.numbers["tests"] if t["q_value"] < 0.05}
    assert ("zeroed", "relative change") in differing


def test_place_and_pixels_are_lost_at_outliers_and_back_under_a_register(found):
    numbers = found("darcet_probes").numbers
    out, back = numbers["outliers"], numbers["their places, with a register"]
    assert out["place"].estimate < 0.5 * numbers["other patches"]["place"].estimate
    assert back["place"].estimate > out["place"].estimate + 0.3
    assert back["distance"].high < out["distance"].low


def test_outliers_are_the_flattest_patches_and_their_places_change(found):
    numbers = found("darcet_similarity").numbers
    assert numbers["rank_by_pixel_spread"].high < 0.5
    assert numbers["priors"]["position_repeat"] < 0.5


def test_a_register_that_is_the_same_in_every_image_does_as_well_and_an_empty_one_does_not(found):
    findings = found("massive_fixed_register")
    value = {
        row["arm"]: row["value"]["estimate"]
        for row in findings.numbers["arms"]["rows"]
        if row["metric"] == "relative change"
    }
    assert value["register fixed to its mean"] == pytest.approx(value["register"], abs=0.05)
    assert value["register fixed to zero"] > 0.5
    behind = findings.numbers["cosine_between_images"]["register, after it"][5:]
    assert all(block.low > 0.99 for block in behind)


def test_the_register_takes_over_the_outliers_attention_and_patches_give_little_before_and_after(
    found,
):
    numbers = found("lappe_faithfulness").numbers
    intact, after = (numbers["arms"][arm] for arm in ("intact", "test-time register"))
    assert intact["attention"]["outlier patches"].low > 0.9 < after["attention"]["registers"].low
    assert intact["attention"]["registers"].estimate == 0
    assert after["attention"]["outlier patches"].high < 0.01
    for arm in (intact, after):
        assert arm["size"]["other patches only"].high < 0.1
    assert intact["with_full_output"]["all patches"]["cosine"].low > 0.999
    assert after["size"]["all patches"].high < 0.1
    assert numbers["sinks_by_block"]["intact"][-1].low > 0.9


def test_shares_of_attention_add_up_and_parts_make_the_whole(found):
    from analyses.paper._cls import cls_parts
    from analyses.paper.lappe_faithfulness import Config
    from ttreg_interp.interventions import TestTimeRegister

    for arm in found("lappe_faithfulness").numbers["arms"].values():
        assert sum(share.estimate for share in arm["attention"].values()) == pytest.approx(1)
    bench = Config(out=None, image_size=112).bench
    parts = cls_parts(bench, TestTimeRegister(bench.neurons), 7)
    whole = sum(parts.parts.values())
    assert (whole - parts.full).norm() < 1e-4 * parts.full.norm()
    added = whole + bench.model.blocks[7].attn.b_O.detach()
    assert (added - parts.added).norm() < 1e-4 * parts.added.norm()
    assert float(sum(parts.attention.values()).sub(1).abs().max()) < 1e-5
    patches = parts.parts["outlier patches"] + parts.parts["other patches"]
    assert (patches.norm(dim=1) <= parts.given.sum(dim=1) * (1 + 1e-5)).all()
    assert parts.by_patch.sum(dim=1) == pytest.approx(
        (parts.attention["outlier patches"] + parts.attention["other patches"]).tolist(), rel=1e-4
    )


def test_one_shot_tells_the_part_that_holds_the_image_from_a_constant(found):
    shot = found("lappe_faithfulness").numbers["arms"]["neurons zeroed"]["one_shot"]
    assert shot["all patches"]["as it is"].estimate == shot["full"]["as it is"].estimate > 2 / 16
