"""Other kernels for the linears of a model's blocks on a CPU, where the default ones are slow.

torch multiplies float32 matrices with MKL, which is slow on processors of AMD, and its own oneDNN is
not; in bfloat16 many processors multiply several times as fast. Weights are read at every call, so
that none is ever stale.
"""

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ttreg_interp.errors import UnsupportedModelError

Precision = Literal["float32", "bfloat16"]

GAIN = 0.9
"""oneDNN is taken for a linear where it needs less than this share of the default kernel's time."""
SAME = 1e-5
"""... and where it differs by less than this from it, relative to the largest output."""
REPEATS = 5
"""Runs of every kernel; the fastest counts, since others may use the machine."""


@dataclass(frozen=True)
class Timing:
    """One linear of the model under both kernels, on two images."""

    d_in: int
    """Inputs of the linear."""
    d_out: int
    """Its outputs."""
    default: float
    """Seconds of torch's default kernel."""
    onednn: float
    """Seconds of oneDNN."""
    error: float
    """Largest difference between the two, relative to the largest output."""

    @property
    def gains(self) -> bool:
        """Whether oneDNN is faster, and no less exact."""
        return self.onednn < GAIN * self.default and self.error < SAME


@dataclass(frozen=True)
class FastCPU:
    """How the linears inside the blocks are computed.

    float32: by oneDNN. Where gradients are recorded, and under `torch.compile`, which brings its own
    kernels, the default ones run.

    bfloat16: under autocast. Linears and attention multiply in bfloat16, and so are the activations
    between them, neurons included; the residual stream, norms, embedding and head stay in float32.

    Example:
        >>> import torch
        >>> from ttreg_interp.hooked import load
        >>> model = load("timm:test_vit?random", fast_cpu="bfloat16")
        >>> _, cache = model.run_with_cache(torch.zeros(1, 3, 160, 160))
        >>> cache["resid_post", 0].dtype, cache["post", 0].dtype
        (torch.float32, torch.bfloat16)
    """

    precision: Precision
    """Of the products; sums are taken in float32 in either case."""
    timings: tuple[Timing, ...] | None = None
    """What was measured: linears where oneDNN gains go through it. None: all do, unmeasured."""

    def running(self, residual: Tensor) -> AbstractContextManager[Any]:
        """The context that blocks run in, given what enters the first of them.

        Raises:
            UnsupportedModelError: the model was moved to another device or dtype since.
        """
        require_float32_on_cpu(residual.device, residual.dtype, self.precision)
        if self.precision == "bfloat16":  # without grad, autocast's cache would only cost memory
            return torch.autocast("cpu", torch.bfloat16, cache_enabled=torch.is_grad_enabled())
        if torch.compiler.is_compiling():
            return nullcontext()
        if self.timings is None:
            return _OneDNN(None)
        gaining = {(timing.d_in, timing.d_out) for timing in self.timings if timing.gains}
        return _OneDNN(gaining) if gaining else nullcontext()


def kernels_of(model: Any, choice: bool | str) -> FastCPU | None:
    """The kernels that a choice means for this model.

    Args:
        model: a HookedViT.
        choice: False: torch's own. True: oneDNN in float32, for those linears where it is faster on
            this machine. 'float32': oneDNN for all. 'bfloat16': autocast.

    Raises:
        UnsupportedModelError: the model is not in float32 on a CPU, or the processor cannot.
    """
    if choice is False:
        return None
    require_float32_on_cpu(model.cfg.device, model.cfg.dtype, choice)
    if choice is True:
        return FastCPU("float32", measured(model))
    if choice not in ("float32", "bfloat16"):
        raise UnsupportedModelError(
            f"fast_cpu={choice!r}: give True (what is faster here, in float32), 'float32' or 'bfloat16'."
        )
    if choice == "bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        raise UnsupportedModelError(
            "fast_cpu='bfloat16': this processor has no AVX-512, so that bfloat16 would be slower than "
            "float32. Take fast_cpu=True."
        )
    return FastCPU(choice)


def require_float32_on_cpu(device: torch.device, dtype: torch.dtype, choice: object) -> None:
    """Refuse what the kernels are not for.

    Raises:
        UnsupportedModelError: another device or dtype.
    """
    if device.type != "cpu" or dtype != torch.float32:
        raise UnsupportedModelError(
            f"fast_cpu={choice!r} is for float32 weights on a CPU; found {dtype} on {device}. Leave it "
            "out, or set model.fast_cpu = None."
        )


@torch.no_grad()
def measured(model: Any) -> tuple[Timing, ...]:
    """Both kernels on every size of linear in the blocks, in one forward pass of two noise images."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, model.parts.n_channels, *model.image_size)
    residual = model(torch.randn(shape, generator=generator), stop_at_layer=0)
    with _Stopwatch() as stopwatch:
        model(residual, start_at_layer=0, stop_at_layer=model.cfg.n_layers)
    return tuple(stopwatch.timings.values())


class _Linears(TorchFunctionMode):
    """Where linears are not torch's; also those that sources compute without a module."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = self.linear if func is F.linear else func
        return call(*args, **(kwargs or {}))

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """input weight^T + bias."""
        raise NotImplementedError


class _OneDNN(_Linears):
    def __init__(self, sizes: set[tuple[int, int]] | None):
        super().__init__()
        self.sizes = sizes

    def linear(
        self,
        input: Float[Tensor, "*rows d_in"],
        weight: Float[Tensor, "d_out d_in"],
        bias: Float[Tensor, " d_out"] | None = None,
    ) -> Float[Tensor, "*rows d_out"]:
        recorded = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (input, weight, bias) if tensor is not None
        )
        wanted = self.sizes is None or (weight.shape[1], weight.shape[0]) in self.sizes
        run = _onednn if wanted and not recorded and input.dtype == torch.float32 else F.linear
        return run(input, weight, bias)


class _Stopwatch(_Linears):
    def __init__(self) -> None:
        super().__init__()
        self.timings: dict[tuple[int, ...], Timing] = {}

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        size = (weight.shape[1], weight.shape[0])
        if size not in self.timings:
            self.timings[size] = _timing(input, weight, bias)
        return F.linear(input, weight, bias)


def _onednn(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


def _timing(input: Tensor, weight: Tensor, bias: Tensor | None) -> Timing:
    expected, found = F.linear(input, weight, bias), _onednn(input, weight, bias)
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    seconds = {F.linear: [], _onednn: []}
    for _ in range(REPEATS):
        for kernel, taken in seconds.items():
            start = time.perf_counter()
            kernel(input, weight, bias)
            taken.append(time.perf_counter() - start)
    default, onednn = (min(taken) for taken in seconds.values())
    error = float((found - expected).abs().max() / scale)
    return Timing(weight.shape[1], weight.shape[0], default, onednn, error)
