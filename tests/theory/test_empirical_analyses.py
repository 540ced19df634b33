"""The scripts that compare the theory with models: small runs keep the promises of their headers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from torchvision.transforms.v2.functional import pil_to_tensor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def scripts():
    """The two scripts, on a planted ViT that is small enough to wait for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        from analyses import _bench
        from analyses.theory import bias_table, empirical
        from ttreg_interp.hooked import HookedViT
        from ttreg_interp.testbed import planted_vit

        vit = planted_vit(image_size=96, depth=6)
        model = HookedViT.wrap(vit.module)
        model.preprocess = lambda image: pil_to_tensor(image).float() / 127.5 - 1
        patch.setattr(_bench, "load", lambda spec, image_size: model)
        patch.setattr(_bench, "_planted", lambda spec, image_size: vit)
        _bench.shared_bench.cache_clear()
        yield {"bias_table": bias_table, "empirical": empirical}
        _bench.shared_bench.cache_clear()


def result(module, out, **config):
    from analyses._run import run

    run(module, replace(module.Config(out=out), **config))
    return json.loads((out / "result.json").read_text())["numbers"]


def test_the_table_finds_every_fit_near_the_intact_model_and_zeroing_far(scripts, tmp_path):
    numbers = result(scripts["bias_table"], tmp_path, steps=8)
    change = {arm: values["change of the output"]["estimate"] for arm, values in numbers.items()}
    fitted = [arm for arm in change if arm.startswith("k', v'")]
    assert len(fitted) == 6 and max(change[arm] for arm in fitted) < 0.1
    assert (
        change["intact"] == 0
        and min(change["zeroed"], change["control: k', v' mean, shuffled"]) > 0.5
    )
    norm = {arm: values["max/median norm"]["estimate"] for arm, values in numbers.items()}
    assert norm["intact"] > 10 and max(norm[arm] for arm in fitted) < 3
    assert len(list(tmp_path.glob("*.safetensors"))) == 5
    assert (tmp_path / "figure.svg").stat().st_size > 1000


def test_outlier_and_register_switch_heads_off_and_an_empty_token_does_not(scripts, tmp_path):
    numbers = result(scripts["empirical"], tmp_path, limit=4, removal=False)
    assert numbers["cosine"]["outliers"]["low"] > 0.9
    assert abs(numbers["cosine"]["control: outliers, random neurons"]["estimate"]) < 0.1
    late = numbers["later_layers"]
    for sink in ("outlier", "register"):
        assert late[sink]["attention"] > 0.9 and late[sink]["no_op"] > 0.8
    assert late["control: empty token"]["attention"] < 0.1 > late["control: empty token"]["no_op"]


@pytest.mark.parametrize("name", ["bias_table", "empirical"])
def test_a_script_opens_with_paper_question_command_runtime_and_expectation(scripts, name):
    header = scripts[name].__doc__
    words = ("Paper and place", "Question", "Command", "Runtime", "Expect")
    places = [header.index(f"\n{word}:") for word in words]
    assert places == sorted(places)
    assert f"python -m analyses.theory.{name} --out" in header
