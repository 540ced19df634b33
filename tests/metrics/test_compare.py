"""Arms compared in one go are the arms as if alone, on fewer blocks."""

import json
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.interventions import kinds
from tests.interventions.models import D_MLP, N_LAYERS
from tests.interventions.models import model as model_of
from ttreg_interp.errors import ContractError, DataError, InterventionError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.interventions import (
    Empty,
    ExtraTokens,
    Intervention,
    NeuronSet,
    PatchActivation,
    ScaleNeurons,
    TestTimeRegister,
    ZeroNeurons,
)
from ttreg_interp.metrics.arm_metrics import (
    KL,
    Cosine,
    MaxOverMedian,
    OutlierCount,
    RegisterAttention,
    RelativeChange,
    SameTop1,
    Top1,
)
from ttreg_interp.metrics.arm_runs import ArmRuns, Observed
from ttreg_interp.metrics.compare import compare, random_controls
from ttreg_interp.metrics.intervals import controls_interval, mean_interval, paired_difference
from ttreg_interp.metrics.trace import trace

CLS, ROTARY, NO_CLS = "timm with [CLS]", "timm Eva with rotation", "timm SigLIP without [CLS]"
EVERYWHERE = Observed(frozenset(range(N_LAYERS)), frozenset(range(N_LAYERS)))
CLEAN = TestTimeRegister({0: [3], 2: [7]})


def _pixels(n_images: int = 3) -> Tensor:
    return torch.randn(n_images, 3, 32, 32, generator=torch.Generator().manual_seed(n_images))


@torch.no_grad()
def _alone(model: HookedViT, arm: Intervention, pixels: Tensor) -> Tensor:
    with model.intervened(arm):
        return model(pixels)


def _all_kinds(layout: str) -> dict[str, Intervention]:
    return {name: make(layout) for name, make in kinds.EXAMPLES.items() if kinds.fits(name, layout)}


class TestArmsThatShareBlocks:
    @pytest.mark.parametrize("layout", [CLS, ROTARY, NO_CLS])
    def test_have_the_bits_of_arms_alone(self, layout):
        model, pixels = model_of(layout), _pixels()
        arms = {"intact": Empty(), **_all_kinds(layout)}
        for name, run in ArmRuns(model, arms, Observed())(pixels):
            assert torch.equal(run.output, _alone(model, arms[name], pixels)), name

    @pytest.mark.parametrize("layout", [CLS, ROTARY, NO_CLS])
    def test_show_what_arms_alone_show(self, layout):
        model, pixels = model_of(layout), _pixels()
        neurons = {2: [7, 9]}
        arms = {
            "intact": Empty(),
            "late": ZeroNeurons(neurons),
            "register": TestTimeRegister(neurons),
            "other register": TestTimeRegister({2: [8]}),
            "bias": kinds.EXAMPLES["an attention bias in one layer"](layout),
        }
        for name, run in ArmRuns(model, arms, EVERYWHERE)(pixels):
            with model.intervened(arms[name]):
                seen = trace(model, pixels)
            for layer in range(N_LAYERS):
                torch.testing.assert_close(run.norms[layer], seen.norms[layer], msg=name)
                torch.testing.assert_close(run.attention[layer], seen.attention[layer], msg=name)

    @settings(max_examples=20, deadline=None)
    @given(st.data())
    def test_are_as_if_alone_whatever_they_have_in_common(self, data):
        sets = st.dictionaries(
            st.integers(0, N_LAYERS - 1), st.lists(st.integers(0, 5), min_size=1), min_size=1
        )
        arm = st.one_of(
            sets.map(ZeroNeurons),
            sets.map(lambda neurons: ScaleNeurons(neurons, 2.0)),
            st.builds(TestTimeRegister, sets, st.integers(1, 2), multiplicity=st.floats(1, 3)),
            st.builds(ExtraTokens, st.integers(1, 2)),
        )
        model, pixels = model_of(CLS), _pixels(2)
        drawn = data.draw(st.lists(arm, min_size=1, max_size=4))
        arms = {"intact": Empty(), **{str(i): one for i, one in enumerate(drawn)}}
        for name, run in ArmRuns(model, arms, Observed())(pixels):
            assert torch.equal(run.output, _alone(model, arms[name], pixels)), arms

    def test_run_only_the_blocks_behind_the_one_where_they_part(self):
        model = model_of(CLS)
        arms = {
            "intact": Empty(),  # 3 blocks
            "last": ZeroNeurons({2: [1]}),  # 1
            "middle": ZeroNeurons({1: [1], 2: [3]}),  # 2
            "token": ExtraTokens(),  # 3: it enters before block 0
            "register": TestTimeRegister({2: [1]}),  # 1: it goes on from the token's
            "two tokens": ExtraTokens(2),  # 3
        }
        ran = Counter()
        handles = [
            block.register_forward_hook(lambda *_, layer=layer: ran.update([layer]))
            for layer, block in enumerate(model.blocks)
        ]
        runs = ArmRuns(model, arms, Observed())
        list(runs(_pixels()))
        for handle in handles:
            handle.remove()
        assert dict(ran) == {0: 3, 1: 4, 2: 6}
        assert runs.n_blocks_run == 13

    def test_do_not_share_what_might_hold_state(self):
        @dataclass(frozen=True, repr=False)
        class Counting(Intervention):
            """Scales a layer by how often it has run, as no intervention should."""

            def describe(self) -> str:
                return "counting"

            def _hooks(self, frame: Any) -> list:
                seen = Counter()

                def scale(resid: Tensor, hook: Any) -> Tensor:
                    seen["runs"] += 1
                    return resid * seen["runs"]

                return [("blocks.0.hook_resid_post", scale), ("blocks.2.hook_resid_post", scale)]

        model, pixels = model_of(CLS), _pixels()
        arms = {"a": Counting(), "b": Counting()}
        for _, run in ArmRuns(model, arms, Observed())(pixels):
            assert torch.equal(run.output, _alone(model, Counting(), pixels))

    def test_stop_at_values_that_are_not_finite(self):
        broken = ScaleNeurons({0: [3], 1: [2]}, 1e38)
        with pytest.raises(ContractError, match="Arm 'broken' .* NaN or inf"):
            compare(model_of(CLS), _pixels(), {"broken": broken})


METRICS = (
    RelativeChange(),
    Cosine(),
    KL(),
    SameTop1(),
    Top1(),
    MaxOverMedian(layer=1),
    OutlierCount(threshold=18.0),
    RegisterAttention(),
)


class TestAComparison:
    @pytest.fixture(scope="class")
    def pixels(self):
        return _pixels(7)

    @pytest.fixture(scope="class")
    def labels(self, pixels):
        return model_of(CLS)(pixels).argmax(dim=1) * torch.tensor([1, 1, 0, 1, 1, 1, 1])

    @pytest.fixture(scope="class")
    def table(self, pixels, labels):
        arms = {"register": CLEAN, "random": random_controls(CLEAN.neurons, D_MLP, n=3)}
        return compare(model_of(CLS), pixels, arms, METRICS, batch_size=3, labels=labels)

    def test_measures_every_image_of_every_arm(self, table, pixels, labels):
        model = model_of(CLS)
        intact, changed = _alone(model, Empty(), pixels), _alone(model, CLEAN, pixels)
        with model.intervened(CLEAN):
            seen = trace(model, pixels)
        expected = {
            "relative change": (changed - intact).norm(dim=1) / intact.norm(dim=1),
            "cosine": torch.cosine_similarity(changed, intact),
            "KL": torch.nn.functional.kl_div(
                changed.log_softmax(1), intact.softmax(1), reduction="none"
            ).sum(dim=1),
            "same top-1": changed.argmax(1) == intact.argmax(1),
            "top-1": changed.argmax(1) == labels,
            "max/median norm, block 1": seen.patch_norms[1].amax(1)
            / seen.patch_norms[1].quantile(0.5, dim=1),
            "outliers > 18, block 2": (seen.patch_norms[2] > 18).sum(dim=1),
            "attention on registers, block 2": seen.register_attention[2].mean(dim=1),
        }
        found = table.per_image["register"]
        assert found.keys() == expected.keys()
        for metric, numbers in expected.items():
            torch.testing.assert_close(
                found[metric], numbers.double(), rtol=1e-4, atol=1e-6, msg=metric
            )

    def test_leaves_the_intact_arm_as_it_is(self, table):
        intact = table.per_image["intact"]
        assert not intact["relative change"].any()
        assert intact["same top-1"].all()
        assert not intact["attention on registers, block 2"].any()

    def test_pairs_every_difference(self, table):
        row = table["register", "top-1"]
        mine, intact = (table.per_image[arm]["top-1"] for arm in ("register", "intact"))
        assert row.value == mean_interval(mine)
        assert row.difference == paired_difference(mine, intact)
        assert table["intact", "top-1"].difference is None
        assert table["register", "cosine"].difference is None

    def test_sums_the_draws_of_a_control_up(self, table):
        draws = torch.stack(
            [table.per_image[f"random: draw {i}"]["cosine"].mean() for i in range(3)]
        )
        assert table["random", "cosine"].value == controls_interval(draws)
        assert table["random", "cosine"].value.n == 3

    def test_does_not_depend_on_the_batch_size(self, table, pixels, labels):
        arms = dict(list(table.arms.items())[1:])
        again = compare(model_of(CLS), pixels, arms, METRICS, batch_size=7, labels=labels)
        for arm, numbers in table.per_image.items():
            for metric, column in numbers.items():
                torch.testing.assert_close(
                    again.per_image[arm][metric], column, rtol=1e-4, atol=1e-6
                )

    def test_prints_a_line_for_every_arm(self, table):
        lines = table.to_markdown().splitlines()
        assert [line.split("|")[1].strip() for line in lines] == [
            "arm",
            lines[1].split("|")[1].strip(),
            "intact",
            "register",
            "random",
        ]
        assert len({len(line) for line in lines}) == 1
        text = str(table)
        assert "7 images" in text
        assert "random: mean and 2.5 to 97.5 percentile of 3 draws" in text
        assert str(table["register", "top-1"].difference) in text

    def test_carries_its_configuration_as_json(self, table):
        body = json.loads(json.dumps(table.to_dict()))
        assert Intervention.from_dict(body["arms"]["register"]) == CLEAN
        assert body["n_images"] == 7
        assert body["seed"] == 0
        assert len(body["rows"]) == 3 * len(METRICS)
        assert body["metrics"][-1] == "RegisterAttention(layer=2)"

    def test_names_what_it_has(self, table):
        with pytest.raises(DataError, match="Arms: .*'register'.*metrics: .*'cosine'"):
            table["clean", "cosine"]

    def test_measures_the_usual_unless_told(self, pixels, labels):
        names = [metric.name for metric in compare(model_of(CLS), pixels, {}).metrics]
        assert names == [
            "relative change",
            "cosine",
            "max/median norm, block 2",
            "KL",
            "same top-1",
        ]
        labelled = compare(model_of(CLS), pixels, {}, labels=labels.tolist())
        assert labelled["intact", "top-1"].value.estimate == pytest.approx(
            float((model_of(CLS)(pixels).argmax(1) == labels).double().mean())
        )
        embedding = compare(model_of("open_clip with ln_pre"), pixels, {}).metrics
        assert [metric.name for metric in embedding] == names[:3]

    def test_reads_logits_off_an_embedding(self, pixels):
        model = model_of("open_clip with ln_pre")
        classifier = torch.randn(6, 4)
        labels = (model(pixels) @ classifier).argmax(dim=1)
        metrics = [Top1(logits=lambda embedding: embedding @ classifier)]
        table = compare(model, pixels, {"register": CLEAN}, metrics, labels=labels)
        assert table["intact", "top-1"].value.estimate == 1


class _Folder:
    """Stands for an ImageFolder of which one file cannot be read."""

    def __init__(self, pixels: Tensor, unreadable: int):
        self.pixels = pixels
        self.kept = [i for i in range(len(pixels)) if i != unreadable]

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, preprocess: Any, batch_size: int) -> list[SimpleNamespace]:
        chunks = [self.kept[i : i + batch_size] for i in range(0, len(self.kept), batch_size)]
        return [
            SimpleNamespace(pixels=preprocess(self.pixels[chunk]), indices=tuple(chunk))
            for chunk in chunks
        ]


class TestImages:
    def test_may_come_as_pixels_as_batches_or_as_files(self, monkeypatch):
        model, pixels = model_of(CLS), _pixels(6)
        monkeypatch.setattr(model, "preprocess", lambda image: image)
        labels = [0, 1, 2, 3, 4, 0]
        kept = [0, 1, 2, 4, 5]
        arms, metrics = {"zero": ZeroNeurons({2: [3]})}, [Top1(), Cosine()]
        whole = compare(model, pixels[kept], arms, metrics, 2, [labels[i] for i in kept])
        split = compare(model, pixels[kept].split(2), arms, metrics, 2, [labels[i] for i in kept])
        files = compare(model, _Folder(pixels, unreadable=3), arms, metrics, 2, labels)
        for other in (split, files):
            assert other.n_images == 5
            for metric, column in whole.per_image["zero"].items():
                assert torch.equal(other.per_image["zero"][metric], column)

    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (_pixels(3), [0, 1], "2 labels for 3 images"),
            (_pixels(3), [0, 1, 2, 3], "4 labels for 3 images"),
            (_pixels(3).split(2), [0, 1], "2 labels, and more images"),
            ([], None, "no image to compare"),
            (_pixels(1), None, "at least 2"),
        ],
    )
    def test_and_labels_must_fit(self, images, labels, message):
        with pytest.raises(DataError, match=message):
            compare(model_of(CLS), images, {}, [Cosine()], labels=labels)

    def test_of_files_need_a_preprocessing(self, monkeypatch):
        monkeypatch.setattr(model_of(CLS), "preprocess", None)
        with pytest.raises(DataError, match=r"Set model\.preprocess"):
            compare(model_of(CLS), _Folder(_pixels(3), 0), {})


class TestRefused:
    def test_labels_without_logits(self):
        with pytest.raises(DataError, match=r"metrics=\[Top1\(logits=...\)\]"):
            compare(model_of("open_clip with ln_pre"), _pixels(), {}, labels=[0, 1, 2])

    def test_top1_without_labels(self):
        with pytest.raises(DataError, match="Top1 needs classes"):
            compare(model_of(CLS), _pixels(), {}, [Top1()])

    def test_an_arm_called_intact(self):
        with pytest.raises(DataError, match="'intact' is taken"):
            compare(model_of(CLS), _pixels(), {"intact": ExtraTokens()})

    def test_a_layer_that_the_model_lacks(self):
        with pytest.raises(DataError, match="blocks 0 to 2"):
            compare(model_of(CLS), _pixels(), {}, [MaxOverMedian(layer=3)])

    def test_an_arm_that_does_not_fit(self):
        with pytest.raises(InterventionError, match="9999"):
            compare(model_of(CLS), _pixels(), {"wrong": ZeroNeurons({0: [9999]})})


class TestRandomControls:
    def test_match_the_neurons_layer_by_layer_and_avoid_them(self):
        neurons = NeuronSet.of({0: [3, 4], 2: [7]})
        draws = random_controls(neurons, D_MLP, n=20)
        assert len(draws) == 20
        for draw in draws.values():
            assert isinstance(draw, ZeroNeurons)
            assert Counter(layer for layer, _ in draw.neurons) == {0: 2, 2: 1}
            assert not len(draw.neurons & neurons)
        assert len(set(draws.values())) > 15

    def test_follow_their_seed(self):
        first, again, other = (random_controls({0: [3]}, D_MLP, 5, seed) for seed in (1, 1, 2))
        assert first == again
        assert first != other

    def test_may_do_something_else_with_the_neurons(self):
        draws = random_controls({0: [3]}, D_MLP, 2, make=TestTimeRegister)
        assert all(isinstance(draw, TestTimeRegister) for draw in draws.values())

    def test_need_two_draws_to_show_a_spread(self):
        with pytest.raises(DataError, match="fewer than 2 draws"):
            random_controls({0: [3]}, D_MLP, n=1)


def test_edits_behind_the_blocks_share_all_but_the_last():
    model, pixels = model_of(CLS), _pixels()
    arms = {"intact": Empty(), "pooled": PatchActivation("hook_pooled", torch.ones(32))}
    runs = ArmRuns(model, arms, Observed())
    assert [step.start for step in runs.steps] == [0, N_LAYERS - 1]
    for name, run in runs(pixels):
        assert torch.equal(run.output, _alone(model, arms[name], pixels))
