"""The main job on every device and in every dtype: the planted neurons are found and moved."""

import pytest
import torch

from ttreg_interp.discovery import find_register_neurons
from ttreg_interp.hooked import HookedViT, verify
from ttreg_interp.interventions import NeuronSet, TestTimeRegister, ZeroNeurons
from ttreg_interp.metrics.trace import measure_effect
from ttreg_interp.testbed import photograph_tensor, planted_vit

RUNS = [
    pytest.param("cpu", torch.bfloat16, id="cpu-bfloat16"),
    *(
        pytest.param("cuda", dtype, marks=pytest.mark.gpu, id=f"cuda-{str(dtype)[6:]}")
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ),
]


@pytest.mark.parametrize(("device", "dtype"), RUNS)
def test_the_planted_neurons_are_found_and_moved(device, dtype):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    vit = planted_vit(image_size=96)
    model = HookedViT.wrap(vit.module.to(device, dtype))
    pixels = photograph_tensor(96)
    assert verify(model, pixels[:2]).passed
    found = find_register_neurons(model, pixels)
    assert set(found) == set(NeuronSet.of(vit.truth))
    images = pixels[:4].to(device, dtype)
    register = measure_effect(model, [images], TestTimeRegister(found))
    zeroed = measure_effect(model, [images], ZeroNeurons(found))
    assert register.relative_change.estimate < 0.1
    assert zeroed.relative_change.estimate > 0.5
