"""A recorded run equals the model's own cache, image by image, under every arm."""

import json
from pathlib import Path

import pytest
import torch

from tests.report.models import KINDS, Batch, Files, pixels_for, tiny
from ttreg_interp.errors import (
    ArtifactError,
    ContractError,
    DataError,
    InterventionError,
    LayoutError,
)
from ttreg_interp.interventions import (
    AttentionBias,
    DeleteTokens,
    Empty,
    ExtraTokens,
    NeuronSet,
    TestTimeRegister,
    ZeroNeurons,
)
from ttreg_interp.report.codes import AttentionCode
from ttreg_interp.report.record import record_run
from ttreg_interp.report.run import MAPS_FILE, RUN_FILE, Run

NEURONS = NeuronSet.of({0: [5, 7], 2: [11]})
ARMS = {
    "intact": Empty(),
    "register": TestTimeRegister(NEURONS, n_registers=2),
    "zeroed": ZeroNeurons(NEURONS),
}


def recorded(tmp_path, model, arms=ARMS, **options) -> Run:
    options = {"neurons": NEURONS, "batch_size": 2} | options
    return Run.load(record_run(model, pixels_for(model), arms, tmp_path / "run", **options))


def caches(model, arms):
    """The model's own cache under every arm."""
    for number, intervention in enumerate(arms.values()):
        with model.intervened(intervention):
            yield number, *model.run_with_cache(pixels_for(model))


@pytest.mark.parametrize("kind", KINDS)
def test_maps_equal_the_cache(tmp_path, kind):
    model = tiny(kind)
    run = recorded(tmp_path, model)
    code = AttentionCode(run.info["attention"]["n_keys"])
    for number, output, cache in caches(model, ARMS):
        maps = run.of_arm(number)
        layers = range(model.cfg.n_layers)
        pattern = torch.stack([cache["pattern", layer] for layer in layers], dim=1)
        bound = code.relative_error * (pattern + 1 / code.n_keys) + 1e-6
        assert ((code.decode(maps["heads"]) - pattern).abs() <= bound).all()
        mean = pattern.mean(dim=2)
        bound = code.relative_error * (mean + 1 / code.n_keys) + 1e-6
        assert ((code.decode(maps["tokens"]) - mean).abs() <= bound).all()
        start = cache.layout.patches.start
        prefix, patches = mean[:, :, :start], mean[:, :, start:].mean(dim=2, keepdim=True)
        torch.testing.assert_close(maps["exact"], torch.cat((prefix, patches), dim=2))
        resid = torch.stack([cache["resid_post", layer] for layer in layers], dim=1)
        torch.testing.assert_close(maps["norms"], resid.norm(dim=-1))
        posts = [cache["post", layer][:, :, neuron] for layer, neuron in NEURONS]
        torch.testing.assert_close(maps["neurons"], torch.stack(posts, dim=1))
        torch.testing.assert_close(maps["output"], output)


@pytest.mark.parametrize("kind", KINDS)
def test_every_arm_says_its_own_layout(tmp_path, kind):
    model = tiny(kind)
    run = recorded(tmp_path, model)
    bare = model.layout()
    for arm, intervention in zip(run.info["arms"], ARMS.values(), strict=True):
        assert arm["layout"] == vars(bare.with_test_time_registers(intervention.n_added_tokens))


def test_batches_of_any_size_record_the_same(tmp_path):
    model = tiny()
    one, many = (
        recorded(tmp_path / str(size), model, batch_size=size, neurons=None) for size in (1, 3)
    )
    assert one.maps.keys() == many.maps.keys()
    for name in one.maps.keys() - {"thumbnails"}:
        torch.testing.assert_close(one.maps[name], many.maps[name], rtol=1e-4, atol=1)


@pytest.mark.parametrize("n_images", [1, 2, 3])
def test_only_the_first_images_are_recorded(tmp_path, n_images):
    model = tiny()
    source = Files(pixels_for(model), ("a.png", "b.png", "c.png"))
    folder = record_run(model, source, ARMS, tmp_path, n_images=n_images, batch_size=2)
    run = Run.load(folder)
    names = ["a.png", "b.png", "c.png"][:n_images]
    assert [image["name"] for image in run.info["images"]] == names
    assert {len(map_) for map_ in run.maps.values()} == {n_images}


def test_a_file_name_that_is_no_text_is_made_printable(tmp_path):
    model = tiny()
    source = Files(pixels_for(model, 1), ("caf\udce9.png",))
    run = Run.load(record_run(model, source, ARMS, tmp_path))
    assert run.info["images"] == [{"name": "caf?.png"}]


def test_attention_to_a_bias_is_told_apart_from_attention_to_tokens(tmp_path):
    model = tiny()
    shape = (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    arms = {"intact": Empty(), "bias": AttentionBias(torch.zeros(shape), torch.zeros(shape))}
    run = recorded(tmp_path, model, arms)
    assert run.info["attention"]["elsewhere"]
    code = AttentionCode(run.info["attention"]["n_keys"])
    for number, _, cache in caches(model, arms):
        pattern = torch.stack([cache["pattern", layer] for layer in range(3)], dim=1)
        expected = pattern[..., 0] if number else torch.zeros_like(pattern[..., 0])
        found = code.decode(run.of_arm(number)["heads"][..., 0])
        bound = code.relative_error * (expected + 1 / code.n_keys) + 1e-6
        assert ((found - expected).abs() <= bound).all()


def test_without_a_bias_all_keys_are_tokens(tmp_path):
    run = recorded(tmp_path, tiny())
    assert run.info["attention"]["elsewhere"] is False
    assert run.of_arm(0)["tokens"].shape[-1] == tiny().layout().n_tokens


def test_provenance_names_model_weights_arms_and_versions(tmp_path):
    model = tiny()
    info = recorded(tmp_path, model).info
    assert info["model"]["name"] == "tiny [CLS]"
    assert len(info["model"]["weights_hash"]) == 64
    assert info["arms"][1]["intervention"] == ARMS["register"].to_dict()
    assert info["arms"][1]["description"] == ARMS["register"].describe()
    assert "torch" in info["versions"]
    assert info["neurons"] == [[0, 5], [0, 7], [2, 11]]


def test_numbers_that_json_lacks_become_none(tmp_path):
    summary = {"table": [{"value": float("nan"), "other": (1, float("inf"))}]}
    run = recorded(tmp_path, tiny(), summary=summary)
    assert run.info["summary"] == {"table": [{"value": None, "other": [1, None]}]}
    json.loads((tmp_path / "run" / RUN_FILE).read_text(), parse_constant=pytest.fail)


def test_a_run_directory_holds_two_files_and_no_leftovers(tmp_path):
    recorded(tmp_path, tiny())
    recorded(tmp_path, tiny())
    assert sorted(file.name for file in (tmp_path / "run").iterdir()) == [MAPS_FILE, RUN_FILE]


def test_a_failing_arm_leaves_the_model_without_hooks(tmp_path):
    model = tiny()
    before = model(pixels_for(model))
    with pytest.raises(InterventionError):
        recorded(tmp_path, model, {"intact": Empty(), "bad": ZeroNeurons({9: [0]})})
    assert torch.equal(model(pixels_for(model)), before)


@pytest.mark.parametrize(
    ("arms", "options", "error", "words"),
    [
        ({}, {}, DataError, "Nothing to record: 0 arms"),
        (ARMS, {"n_images": 0}, DataError, "n_images=0"),
        (ARMS, {"neurons": {0: [10_000]}}, InterventionError, "neuron 10000 is not in tiny"),
        ({"gone": DeleteTokens(((0, 0),), 1)}, {}, LayoutError, "Record MaskTokens"),
        ({"added": ExtraTokens(1), "gone": DeleteTokens(((0, 0),), 1)}, {}, LayoutError, "no grid"),
    ],
)
def test_what_cannot_be_recorded_is_refused(tmp_path, arms, options, error, words):
    with pytest.raises(error, match=words):
        recorded(tmp_path, tiny(), arms, **options)
    assert not (tmp_path / "run").exists()


def test_an_empty_source_is_refused(tmp_path):
    model = tiny()
    for source in (Files(pixels_for(model), ()), pixels_for(model)[:0]):
        with pytest.raises(DataError, match="n_images=0|No images to record"):
            record_run(model, source, ARMS, tmp_path)


def test_images_of_two_sizes_are_refused(tmp_path):
    model = tiny(dynamic_img_size=True)

    class TwoSizes(Files):
        def batches(self, preprocess, batch_size):
            for size, name in ((32, "a.png"), (48, "b.png")):
                yield Batch(torch.zeros(1, 3, size, size), (Path(name),))

    source = TwoSizes(torch.zeros(0), ())
    with pytest.raises(LayoutError, match=r"found \[3, 32, 32\] and \[3, 48, 48\]"):
        record_run(model, source, ARMS, tmp_path)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.bfloat16), pytest.param("cuda", torch.float16, marks=pytest.mark.gpu)],
)
def test_half_precision_is_averaged_over_heads_in_single(tmp_path, device, dtype):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = tiny().to(device=device, dtype=dtype)
    run = recorded(tmp_path, model, {"intact": Empty()}, batch_size=3)
    pixels = pixels_for(model).to(device, dtype)
    _, cache = model.run_with_cache(pixels, names_filter=lambda name: "pattern" in name)
    mean = cache["pattern", 1].float().mean(dim=1).cpu()
    found = run.of_arm(0)["exact"][:, 1, 0]
    torch.testing.assert_close(found, mean[:, 0])


def test_a_broken_forward_names_its_layer(tmp_path):
    model = tiny()
    with torch.no_grad():
        model.source.blocks[1].mlp.fc2.bias[0] = float("nan")
    with pytest.raises(ContractError, match="after block 1"):
        recorded(tmp_path, model)


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: (folder / RUN_FILE).unlink(), "no readable run directory"),
        (lambda folder: (folder / RUN_FILE).write_text("{"), "no readable run directory"),
        (lambda folder: (folder / MAPS_FILE).write_bytes(b"x" * 30), "no readable run directory"),
        (lambda folder: (folder / RUN_FILE).write_text("[]"), "has schema None"),
        (lambda folder: (folder / RUN_FILE).write_text('{"schema": "x/2"}'), "has schema 'x/2'"),
    ],
)
def test_a_damaged_run_directory_is_refused(tmp_path, break_it, words):
    recorded(tmp_path, tiny())
    break_it(tmp_path / "run")
    with pytest.raises(ArtifactError, match=words):
        Run.load(tmp_path / "run")
