"""The memory tables of docs/how-to/nnsight.md, counted on models without memory.

`python -m tests.backends.memory_plan` prints them.
"""

import sys
from collections.abc import Iterator
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from ttreg_interp.backends.nnsight import TracedLM, TracedViT

VISION = {  # InternViT-6B
    "hidden_size": 3200,
    "num_hidden_layers": 45,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "image_size": 448,
    "patch_size": 14,
    "norm_type": "rms_norm",
    "use_qk_norm": True,
}
LANGUAGE = {  # Llama-3-70B
    "vocab_size": 128256,
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "max_position_embeddings": 8192,
}
N_IMAGES, N_TOKENS = 8, 2048
HEAD = "| | arithmetic | numbers | GiB, in 16 bits |\n| --- | --- | --- | --- |\n"


def vision_model() -> nn.Module:
    """The tower of 6 billion parameters, on `meta`."""
    with torch.device("meta"):
        return hf.InternVLVisionModel(hf.InternVLVisionConfig(**VISION)).eval()


def language_model() -> nn.Module:
    """The language model of 70 billion parameters, on `meta`."""
    with torch.device("meta"):
        return hf.LlamaForCausalLM(hf.LlamaConfig(**LANGUAGE)).eval()


def vision_table() -> str:
    """What it holds, and what a run over images holds."""
    module = vision_model()
    traced = TracedViT.trace(module)
    seen = _first_block(traced, torch.zeros(N_IMAGES, 3, 448, 448, device="meta"))
    rows = [
        ("attention weights", "45 x 4 x 3200^2", _matrices(module, ".attention.")),
        ("MLP weights", "45 x 2 x 3200 x 12800", _matrices(module, ".mlp.")),
        ("**all weights**", None, _numel(module.parameters())),
        ("residual stream, 8 images", "8 x 1025 x 3200", seen["hook_resid_post"]),
        ("neurons of one block, 8 images", "8 x 1025 x 12800", seen["mlp.hook_post"]),
        ("neurons of all blocks, 8 images", "45 x 8 x 1025 x 12800", 45 * seen["mlp.hook_post"]),
        ("pattern of one block, 8 images (only if hooked)", "8 x 25 x 1025^2", seen["attn.hook_pattern"]),
    ]  # fmt: skip
    return HEAD + "\n".join(_row(*row) for row in rows)


def language_table() -> str:
    """What it holds, and what a run over a text holds."""
    module = language_model()
    traced = TracedLM.trace(module)
    seen = _first_block(traced, torch.zeros(1, N_TOKENS, dtype=torch.long, device="meta"))
    ends = [module.get_input_embeddings().weight, module.lm_head.weight]
    rows = [
        ("attention weights", "80 x (2 x 8192^2 + 2 x 8192 x 1024)", _matrices(module, ".self_attn.")),
        ("MLP weights", "80 x 3 x 8192 x 28672", _matrices(module, ".mlp.")),
        ("embedding and head", "2 x 128256 x 8192", _numel(ends)),
        ("**all weights**", None, _numel(module.parameters())),
        ("residual stream, 2048 tokens", "2048 x 8192", seen["hook_resid_post"]),
        ("neurons of one block, 2048 tokens", "2048 x 28672", seen["mlp.hook_post"]),
        ("neurons of all blocks, 2048 tokens", "80 x 2048 x 28672", 80 * seen["mlp.hook_post"]),
        ("pattern of one block, 2048 tokens (only if hooked)", "64 x 2048^2", seen["attn.hook_pattern"]),
    ]  # fmt: skip
    return HEAD + "\n".join(_row(*row) for row in rows)


def _first_block(traced: Any, inputs: Tensor) -> dict[str, int]:
    """Numbers at the hook points of the first block, in a run without memory."""
    with torch.no_grad():
        _, cache = traced.run_with_cache(inputs, stop_at_layer=1)
    return {name.split(".", 2)[-1]: value.numel() for name, value in cache.items()}


def _matrices(module: nn.Module, path: str) -> int:
    return _numel(p for name, p in module.named_parameters() if path in name and p.ndim > 1)


def _numel(tensors: Any) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _row(what: str, arithmetic: str | None, n: int) -> str:
    """A row whose arithmetic gives what was counted."""
    if arithmetic is not None:
        assert eval(arithmetic.replace("x", "*").replace("^", "**")) == n, (what, arithmetic, n)
    return f"| {what} | {arithmetic or 'counted'} | {n:.2e} | {2 * n / 2**30:.2f} |"


def tables() -> Iterator[str]:
    """Both."""
    yield vision_table()
    yield language_table()


if __name__ == "__main__":
    sys.stdout.write("\n\n".join(tables()) + "\n")
