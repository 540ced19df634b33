"""The arms of this package: hooks, caches, patterns, interventions, deployed models."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import NEURONS, Size, source
from benchmarks.timing import Work
from ttreg_interp.hooked import HookedViT
from ttreg_interp.hooked.fast_cpu import Precision
from ttreg_interp.hooked.rows import AttentionRows
from ttreg_interp.interventions import AttentionBias, ExtraTokens, Intervention, TestTimeRegister

REGISTER = TestTimeRegister(NEURONS)
"""The intervention that is timed, hooked, baked, compiled and as ONNX."""


def seen(model: HookedViT, pixels: Tensor) -> dict[str, Work]:
    """What it costs to look: base is the plain source."""

    def cached(names_filter: Any) -> Work:
        return lambda: model.run_with_cache(pixels, names_filter=names_filter)

    last = f"blocks.{model.cfg.n_layers - 1}.attn.hook_pattern"
    return {
        "hooked, nothing attached": lambda: model(pixels),
        "cache of all neurons": cached(lambda name: name.endswith("mlp.hook_post")),
        "[CLS] row of all patterns": lambda: _cls_rows(model, pixels),
        "pattern of one layer": cached(last),
        "pattern of all layers": cached(lambda name: name.endswith("hook_pattern")),
        "everything cached": cached(None),
        "half of the layers": lambda: model(pixels, stop_at_layer=model.cfg.n_layers // 2),
    }


def _cls_rows(model: HookedViT, pixels: Tensor) -> AttentionRows:
    rows = AttentionRows(model, model.layout().cls)
    model.run_with_hooks(pixels, fwd_hooks=rows.fwd_hooks())
    return rows


def intervened(model: HookedViT, pixels: Tensor) -> dict[str, Work]:
    """What it costs to intervene: base is the plain source on one token more."""

    def under(intervention: Intervention) -> Work:
        def work() -> Tensor:
            with model.intervened(intervention):
                return model(pixels)

        return work

    shape = (model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head)
    bias = AttentionBias(torch.zeros(shape), torch.zeros(shape))
    return {
        "extra token": under(ExtraTokens()),
        "test-time register": under(REGISTER),
        "attention bias": under(bias),
    }


def fast(size: Size, pixels: Tensor) -> dict[str, Work]:
    """The same forward pass through other kernels."""

    def arm(choice: bool | Precision) -> Work:
        model = HookedViT.wrap(source(size), fast_cpu=choice)
        return lambda: model(pixels)

    return {
        "fast_cpu, measured": arm(True),
        "fast_cpu, float32": arm("float32"),
        "fast_cpu, bfloat16": arm("bfloat16"),
    }


def deployed(model: HookedViT, pixels: Tensor, folder: Path) -> dict[str, Work]:
    """The register inside plain modules and an ONNX file."""
    import onnxruntime

    from ttreg_interp import bake, to_onnx

    baked = bake(model, REGISTER)
    compiled = torch.compile(bake(model, REGISTER))
    file = to_onnx(model, REGISTER, folder / "register.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return {
        "register, baked": lambda: baked(pixels),
        "register, baked and compiled": lambda: compiled(pixels),
        "register, ONNX": lambda: session.run(None, {name: pixels.numpy()}),
    }
