"""Runs of a planted ViT under plain PyTorch hooks, and the paper's Algorithm 1 on them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ttreg_interp.testbed import PlantedViT

Neurons = Mapping[int, tuple[int, ...]]

OUTLIER_RATIO = 3.0
"""A patch is an outlier if its norm exceeds this many medians of its image."""


@dataclass(frozen=True)
class Run:
    """What one forward pass left behind."""

    output: Tensor
    """[image, output]"""
    residual: Tensor
    """[layer, image, token, d_model]: block outputs."""
    activation: Tensor
    """[layer, image, token, neuron]: after the nonlinearity and any edit."""
    normed: Tensor
    """[layer, image, token, d_model]: what attention reads."""
    patches: int

    def patch_norms(self) -> Tensor:
        """[layer, image, patch]"""
        return self.residual[:, :, 1 : 1 + self.patches].norm(dim=-1)

    def norm_ratio(self) -> Tensor:
        """[layer, image]: largest over median patch norm."""
        norms = self.patch_norms()
        return norms.amax(-1) / norms.median(-1).values

    def outliers(self) -> Tensor:
        """[image, patch], at the last block's output."""
        norms = self.patch_norms()[-1]
        return norms > OUTLIER_RATIO * norms.median(-1, keepdim=True).values


@torch.no_grad()
def run(
    vit: PlantedViT,
    pixels: Tensor,
    moved: Neurons | None = None,
    register: bool = False,
) -> Run:
    """One forward; `moved` neurons are zeroed, their maxima kept on an appended zero token if
    there is a `register`."""
    residual, activation, normed = [], [], []
    edits = moved or {}

    def edit(layer: int) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            hidden = inputs[0].clone()
            chosen = list(edits.get(layer, ()))
            highest = hidden[:, :, chosen].amax(1)
            hidden[:, :, chosen] = 0
            if register:
                hidden[:, -1, chosen] = highest
            activation.append(hidden)
            return (hidden,)

        return hook

    def append(module: nn.Module, inputs: tuple[Tensor], tokens: Tensor) -> Tensor | None:
        return torch.cat([tokens, torch.zeros_like(tokens[:, :1])], 1) if register else None

    parts = _parts(vit)
    with ExitStack() as hooks:
        hooks.enter_context(_lifted(parts.embedded.register_forward_hook(append)))
        for layer, block in enumerate(parts.blocks):
            for handle in (
                block.mlp_out.register_forward_pre_hook(edit(layer)),
                block.norm.register_forward_hook(lambda m, i, out: normed.append(out)),
                block.whole.register_forward_hook(lambda m, i, out: residual.append(out)),
            ):
                hooks.enter_context(_lifted(handle))
        output = vit.module(pixels)
    stacked = map(torch.stack, (residual, activation, normed))
    return Run(output, *stacked, patches=vit.config.shape.patches)


def relative_change(changed: Run, intact: Run) -> Tensor:
    """[image]: of the final [CLS]."""
    return (changed.output - intact.output).norm(dim=-1) / intact.output.norm(dim=-1)


def scores(intact: Run, top_layer: int, everywhere: bool = False) -> Tensor:
    """[layer, neuron]: mean |activation| over outlier patches (arXiv 2506.08010, Algorithm 1), or
    over all patches."""
    patches = intact.activation[: top_layer + 1, :, 1 : 1 + intact.patches].abs()
    chosen = intact.outliers()
    return patches[:, chosen | everywhere].mean(1)


def highest(score: Tensor, count: int) -> dict[int, tuple[int, ...]]:
    """The `count` neurons of highest score over all layers."""
    found: dict[int, list[int]] = {}
    for index in score.flatten().topk(count).indices.tolist():
        found.setdefault(index // score.shape[1], []).append(index % score.shape[1])
    return {layer: tuple(sorted(found[layer])) for layer in sorted(found)}


def margin(score: Tensor, truth: Neurons) -> float:
    """Lowest score of a planted neuron over the highest of any other."""
    others = score.clone()
    planted = []
    for layer, neurons in truth.items():
        planted.append(score[layer, list(neurons)])
        others[layer, list(neurons)] = 0
    return (torch.cat(planted).min() / others.max()).item()


def count(neurons: Neurons) -> int:
    return sum(map(len, neurons.values()))


def matched_random(vit: PlantedViT, seed: int) -> dict[int, tuple[int, ...]]:
    """As many neurons of the same layers, none of them planted."""
    generator = torch.Generator().manual_seed(seed)
    width = 4 * vit.config.shape.width
    return {
        layer: tuple(
            [n for n in torch.randperm(width, generator=generator).tolist() if n not in planted][
                : len(planted)
            ]
        )
        for layer, planted in vit.truth.items()
    }


def attention(vit: PlantedViT, seen: Run, layer: int) -> Tensor:
    """[image, head, query, key]: the pattern, computed from what attention read."""
    weight, bias, heads = _parts(vit).qkv(layer)
    query, key, _ = torch.nn.functional.linear(seen.normed[layer], weight, bias).chunk(3, -1)
    query, key = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key))
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)


def register_keys_values(vit: PlantedViT, shifted: Run) -> list[tuple[Tensor, Tensor]]:
    """Per layer, k' and v' [d_model]: the register's key and value, averaged over images."""
    found = []
    for layer, normed in enumerate(shifted.normed):
        weight, bias, _ = _parts(vit).qkv(layer)
        _, key, value = torch.nn.functional.linear(normed[:, -1], weight, bias).chunk(3, -1)
        found.append((key.mean(0), value.mean(0)))
    return found


def run_with_bias(
    vit: PlantedViT, pixels: Tensor, moved: Neurons, bias: list[tuple[Tensor, Tensor]]
) -> Run:
    """`moved` neurons zeroed, and one more key and value in every head behind the outliers."""
    with ExitStack() as hooks:
        for layer in range(vit.emerges_at + 1, vit.config.shape.depth):
            attn = _parts(vit).blocks[layer].attn
            replace = _with_bias(vit, layer, *bias[layer])
            hooks.enter_context(_lifted(attn.register_forward_hook(replace)))
        return run(vit, pixels, moved)


def _with_bias(vit: PlantedViT, layer: int, key_bias: Tensor, value_bias: Tensor) -> Callable:
    weight, bias, heads = _parts(vit).qkv(layer)

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> object:
        query, key, value = torch.nn.functional.linear(inputs[0], weight, bias).chunk(3, -1)
        key = torch.cat([key, key_bias.expand_as(key[:, :1])], 1)
        value = torch.cat([value, value_bias.expand_as(value[:, :1])], 1)
        query, key, value = (
            x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value)
        )
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        result = _parts(vit).blocks[layer].attention_out(mixed.transpose(1, 2).flatten(2))
        return (result, None) if isinstance(output, tuple) else result

    return hook


@dataclass(frozen=True)
class _BlockParts:
    whole: nn.Module
    norm: nn.Module
    attn: nn.Module
    attention_out: nn.Module
    mlp_out: nn.Module


@dataclass(frozen=True)
class _Parts:
    embedded: nn.Module
    blocks: list[_BlockParts]
    qkv: Callable[[int], tuple[Tensor, Tensor, int]]


def _parts(vit: PlantedViT) -> _Parts:
    module = vit.module
    if vit.config.layout == "timm":

        def qkv(layer: int) -> tuple[Tensor, Tensor, int]:
            attn = module.blocks[layer].attn
            return attn.qkv.weight, attn.qkv.bias, attn.num_heads

        blocks = [_BlockParts(b, b.norm1, b.attn, b.attn.proj, b.mlp.fc2) for b in module.blocks]
        return _Parts(module.norm_pre, blocks, qkv)

    def in_proj(layer: int) -> tuple[Tensor, Tensor, int]:
        attn = module.transformer.resblocks[layer].attn
        return attn.in_proj_weight, attn.in_proj_bias, attn.num_heads

    blocks = [
        _BlockParts(b, b.ln_1, b.attn, b.attn.out_proj, b.mlp.c_proj)
        for b in module.transformer.resblocks
    ]
    return _Parts(module.ln_pre, blocks, in_proj)


@contextmanager
def _lifted(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
