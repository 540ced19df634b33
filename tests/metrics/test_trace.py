"""What interventions do, measured for many at once: the intact model runs once, and no bit changes."""

import pytest
import torch

from ttreg_interp.errors import DataError
from ttreg_interp.hooked import load
from ttreg_interp.interventions import ExtraTokens, TestTimeRegister, ZeroNeurons
from ttreg_interp.metrics.trace import measure_effect, measure_effects, trace

ARMS = {
    "register": TestTimeRegister({3: [7]}),
    "zeroed": ZeroNeurons({3: [7]}),
    "zeroed later": ZeroNeurons({5: [7, 9]}),
    "token": ExtraTokens(2),
}


@pytest.fixture(scope="module")
def model():
    return load("timm:test_vit?random")


@pytest.fixture(scope="module")
def batches():
    pixels = torch.randn(5, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    return pixels.split(3)


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_beside_others_has_the_bits_of_one_by_itself(model, batches, name):
    among = measure_effects(model, batches, ARMS, n_examples=4)[name]
    alone = measure_effect(model, batches, ARMS[name], n_examples=4)
    assert among.to_dict() == alone.to_dict()
    assert [one.name for one in among.examples] == ["0", "1", "2", "3"]
    for one, other in zip(among.examples, alone.examples, strict=True):
        assert torch.equal(one.attention_after, other.attention_after)


@pytest.mark.parametrize("name", ARMS)
def test_the_numbers_are_those_of_two_traces(model, batches, name):
    found = measure_effect(model, batches[:1], ARMS[name])
    before = trace(model, batches[0])
    with model.intervened(ARMS[name]):
        after = trace(model, batches[0])
    for layer, row in enumerate(found.layers):
        for norms, largest in ((before, row.max_norm_before), (after, row.max_norm_after)):
            assert largest == float(norms.patch_norms[layer].amax(dim=-1).double().mean())
        drawn = after.register_attention.mean(dim=-1)[layer].double().mean()
        assert row.attention_on_register == float(drawn)
    apart = (after.output - before.output).double().norm(dim=1) / before.output.double().norm(dim=1)
    assert found.relative_change.estimate == pytest.approx(float(apart.mean()))


def test_the_intact_model_runs_once_a_batch(model, batches):
    runs = []
    handle = model.source.patch_embed.register_forward_hook(lambda *_: runs.append(1))
    try:
        later = {"a": ZeroNeurons({3: [1]}), "b": ZeroNeurons({4: [1]}), "c": ZeroNeurons({5: [1]})}
        measure_effects(model, batches, later)
    finally:
        handle.remove()
    assert len(runs) == len(batches)


def test_nothing_to_measure_on_is_refused(model):
    with pytest.raises(DataError, match="the batches were empty"):
        measure_effects(model, [], ARMS)
    with pytest.raises(DataError, match="is taken by the model as it is"):
        measure_effects(model, [], {"intact model": ExtraTokens()})
