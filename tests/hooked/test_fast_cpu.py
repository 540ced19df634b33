"""Other kernels on a CPU: the same model to a stated error, never stale, and refused elsewhere."""

import copy

import pytest
import torch
from torch.nn import functional as F

from tests.hooked.families import FAMILIES, make
from ttreg_interp.deploy.bake import bake
from ttreg_interp.deploy.frozen import freeze
from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.hooked import HookedViT, load, verify
from ttreg_interp.hooked import fast_cpu as kernels
from ttreg_interp.hooked.fast_cpu import FastCPU, Timing
from ttreg_interp.interventions import AttentionBias, TestTimeRegister, ZeroNeurons

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
BOUND = {"float32": 1e-5, "bfloat16": 3e-2}
"""Largest error of an output, relative to its largest value."""
SOME = [
    "timm plain",
    "timm SwiGLU, gate first",
    "open_clip",
    "eva rotary, registers, packed SwiGLU",
]

needs_bfloat16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="needs AVX-512"
)
PRECISIONS = ["float32", pytest.param("bfloat16", marks=needs_bfloat16)]


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected).abs().max() / expected.abs().max())


@pytest.fixture
def calls(monkeypatch):
    """Sizes of the linears that went through oneDNN."""
    sizes, onednn = [], kernels._onednn
    monkeypatch.setattr(
        kernels,
        "_onednn",
        lambda x, w, b: sizes.append((w.shape[1], w.shape[0])) or onednn(x, w, b),
    )
    return sizes


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_every_family_gives_its_output_within_the_bound(name, precision):
    module = make(name)
    expected = HookedViT.wrap(module)(PIXELS)
    found = HookedViT.wrap(module, fast_cpu=precision)(PIXELS)
    assert found.dtype == torch.float32
    assert error(found, expected) < BOUND[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", SOME)
def test_the_contract_holds(name, precision):
    verify(HookedViT.wrap(make(name), fast_cpu=precision)).require()


@pytest.mark.parametrize("precision", PRECISIONS)
@torch.no_grad()
def test_the_residual_stream_stays_in_float32(precision):
    model = HookedViT.wrap(make("open_clip"), fast_cpu=precision)
    _, cache = model.run_with_cache(PIXELS)
    stream = [cache[name] for name in cache.cache_dict if "resid" in name or "embed" in name]
    assert {tensor.dtype for tensor in stream} == {torch.float32}
    assert cache["post", 0].dtype == getattr(torch, precision)
    assert model.cfg.fast_cpu == precision and model.cfg.dtype == torch.float32


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "intervention",
    [
        TestTimeRegister({0: [3, 5]}),
        ZeroNeurons({1: [3, 5, 8]}),
        AttentionBias(torch.ones(2, 2, 16), torch.ones(2, 2, 16)),
    ],
    ids=lambda intervention: type(intervention).__name__,
)
@pytest.mark.parametrize("name", SOME)
@torch.no_grad()
def test_interventions_act_as_on_the_plain_model(name, intervention, precision):
    module = make(name)
    plain, fast = HookedViT.wrap(module), HookedViT.wrap(module, fast_cpu=precision)
    with plain.intervened(intervention), fast.intervened(intervention):
        expected, found = plain(PIXELS), fast(PIXELS)
    assert error(found, expected) < BOUND[precision]
    assert error(plain(PIXELS), expected) > 3e-4  # it does something


def test_float32_is_onednn_in_every_linear_of_the_blocks(calls):
    model = HookedViT.wrap(make("timm plain"), fast_cpu="float32")
    with torch.no_grad():
        model(PIXELS)
    assert calls == 2 * [(32, 96), (32, 32), (32, 128), (128, 32)]


@pytest.mark.parametrize("precision", PRECISIONS)
@torch.no_grad()
def test_no_weight_is_ever_stale(precision):
    model = HookedViT.wrap(make("timm plain"), fast_cpu=precision)
    model(PIXELS)
    weights = model.source.blocks[1].mlp.fc1.weight
    doubled = {name: 2 * value for name, value in model.source.state_dict().items()}
    other = copy.deepcopy(model.source.blocks[0].mlp.fc1)
    edits = (
        lambda: weights.mul_(2),
        lambda: weights.data.mul_(2),  # leaves the version of the parameter as it was
        lambda: model.source.load_state_dict(doubled),
        lambda: setattr(model.source.blocks[1].mlp, "fc1", other),
    )
    for edit in edits:
        before = model(PIXELS)
        edit()
        found = model(PIXELS)
        assert error(found, before) > 2e-4
        assert error(found, model.source(PIXELS)) < BOUND[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_gradients_are_those_of_the_plain_model(precision, calls):
    grads = []
    for choice in (False, precision):
        model = HookedViT.wrap(make("timm plain"), fast_cpu=choice)
        model(PIXELS).square().sum().backward()
        grads.append(model.source.blocks[0].mlp.fc1.weight.grad)
    assert error(grads[1], grads[0]) < BOUND[precision]
    assert not calls


@pytest.mark.parametrize(
    ("onednn", "deviation", "taken"), [(0.5, 1e-6, True), (0.95, 1e-6, False), (0.5, 1e-3, False)]
)
def test_onednn_is_taken_where_it_is_faster_and_as_exact(onednn, deviation, taken, calls):
    model = HookedViT.wrap(make("timm plain"))
    fine = Timing(32, 96, default=1.0, onednn=onednn, error=deviation)
    slow = Timing(32, 128, default=1.0, onednn=2.0, error=1e-6)
    model.fast_cpu = FastCPU("float32", (fine, slow))
    with torch.no_grad():
        model(PIXELS)
    assert calls == 2 * taken * [(32, 96)]


def test_true_measures_every_linear_of_the_blocks_on_two_images():
    model = HookedViT.wrap(make("open_clip"), fast_cpu=True)
    timings = model.fast_cpu.timings
    assert [(t.d_in, t.d_out) for t in timings] == [(32, 96), (32, 32), (32, 128), (128, 32)]
    assert all(t.default > 0 and t.onednn > 0 and t.error < 1e-5 for t in timings)
    with torch.no_grad():
        assert error(model(PIXELS), model.source(PIXELS)) < 1e-5


@torch.no_grad()
def test_linears_of_every_form_are_torchs():
    weight, bias = torch.randn(30, 16), torch.randn(30)
    forms = [
        (torch.randn(2, 3, 4, 16), weight, None),
        (torch.randn(16, 7).T, weight, bias),
        (torch.randn(5, 16), weight.chunk(2)[1], bias.chunk(2)[1]),
        (torch.randn(5, 16), torch.randn(16, 30).T, bias),
        (torch.randn(1, 16).expand(5, 16), weight, bias),
        (torch.randn(0, 16), weight, bias),
    ]
    for x, w, b in forms:
        torch.testing.assert_close(kernels._onednn(x, w, b), F.linear(x, w, b))


@needs_bfloat16
def test_it_stays_with_a_copy_and_goes_when_it_is_told_to():
    model = load("timm:test_vit?random", fast_cpu="bfloat16")
    twin = copy.deepcopy(model)
    assert twin.fast_cpu == model.fast_cpu == FastCPU("bfloat16")
    pixels = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        assert not torch.equal(twin(pixels), twin.source(pixels))
        twin.fast_cpu = None
        assert torch.equal(twin(pixels), twin.source(pixels))


@needs_bfloat16
@torch.no_grad()
def test_what_is_deployed_runs_on_torchs_kernels():
    module, register = make("timm plain"), TestTimeRegister({0: [3, 5]})
    fast = HookedViT.wrap(module, fast_cpu="bfloat16")
    plain = HookedViT.wrap(module)
    with plain.intervened(register):
        expected = plain(PIXELS)
    assert torch.equal(bake(fast, register)(PIXELS), expected)
    assert torch.equal(freeze(copy.deepcopy(fast), register)(PIXELS), expected)
    assert fast.fast_cpu is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": torch.bfloat16, "fast_cpu": True}, "found torch.bfloat16 on cpu. Leave it"),
        (
            {"device": "meta", "fast_cpu": "float32"},
            "is for float32 weights on a CPU; found .* meta",
        ),
    ],
)
def test_what_it_is_not_for_is_refused(arguments, message):
    with pytest.raises(UnsupportedModelError, match=message):
        load("timm:test_vit?random", **arguments)


def test_another_precision_is_told_those_there_are():
    with pytest.raises(UnsupportedModelError, match=r"fast_cpu='int8': give True .*'bfloat16'"):
        kernels.kernels_of(HookedViT.wrap(make("timm plain")), "int8")


def test_a_language_model_has_no_such_kernels():
    with pytest.raises(UnsupportedModelError, match="is a language model; leave out fast_cpu"):
        load("testbed-lm:gpt2", fast_cpu=True)


def test_a_model_that_was_moved_since_says_so():
    model = HookedViT.wrap(make("timm plain"), fast_cpu="float32").double()
    with pytest.raises(UnsupportedModelError, match=r"found torch.float64 on cpu.*fast_cpu = None"):
        model(PIXELS.double())
