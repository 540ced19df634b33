"""`verify`: what a hooked model promises, checked on the model in hand.

Parity with the source, identity of hooks that change nothing, causality of every hook point,
attention that sums to one, weights that decompose what they write, and a layout that is true.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ttreg_interp.errors import ContractError
from ttreg_interp.hooked.language import HookedLM
from ttreg_interp.hooked.vit import HookedViT

TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest relative error by dtype. Fused and spelled-out kernels round differently."""


@dataclass(frozen=True)
class Check:
    """One promise, and what was found."""

    name: str
    """What is promised."""
    passed: bool
    """Whether it holds."""
    detail: str
    """The figure, or the hook points that break it."""
    error: float = 0.0
    """Largest relative error, where the check has one."""


@dataclass(frozen=True)
class Verification:
    """All checks of one model."""

    model: str
    """Spec or class."""
    family: str
    """The source's class."""
    n_hook_points: int
    """Hook points tried."""
    checks: tuple[Check, ...]
    """In the order they ran."""

    @property
    def passed(self) -> bool:
        """Whether all checks hold."""
        return all(check.passed for check in self.checks)

    def error(self, name: str) -> float:
        """The figure of the check of that name."""
        return next(check.error for check in self.checks if check.name == name)

    def require(self) -> "Verification":
        """Itself, if all checks hold.

        Raises:
            ContractError: names the checks that failed and their details.
        """
        failed = [f"{check.name}: {check.detail}" for check in self.checks if not check.passed]
        if failed:
            raise ContractError(
                f"{self.model} ({self.family}) breaks its contract. {' | '.join(failed)}. Its source "
                "file misses a part of the model; see docs/how-to/add-a-model.md."
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": self.model,
            "family": self.family,
            "hook_points": self.n_hook_points,
            "passed": self.passed,
            "checks": [vars(check) for check in self.checks],
        }


@torch.no_grad()
def verify(
    model: HookedViT | HookedLM,
    pixels: Float[Tensor, "batch channel height width"] | Int[Tensor, "batch token"] | None = None,
    seed: int = 0,
) -> Verification:
    """Check every promise of a hooked model.

    Args:
        model: any HookedViT or HookedLM.
        pixels: images to run (default: two images of noise at the model's own size), or token ids
            (default: two texts of random tokens).
        seed: of the noise images or random tokens, and of the overwrites.

    Returns:
        One Check per promise; call `.require()` to raise on a failure.

    Example:
        >>> from ttreg_interp.hooked import load
        >>> verify(load("timm:test_vit?random")).passed
        True
    """
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, HookedLM):
        checks = _language_checks(model, pixels, generator)
        return Verification(model.cfg.model_name, model.parts.family, len(model.hook_dict), checks)
    if pixels is None:
        pixels = torch.randn(2, model.parts.n_channels, *model.image_size, generator=generator)
    pixels = pixels.to(model.cfg.device, model.cfg.dtype)
    checks = (
        _parity(model, pixels),
        _identity(model, pixels),
        _causality(model, pixels[:1], generator),
        _pattern(model, pixels),
        _decomposition(model, pixels),
        _layout(model, pixels),
        _hidden_token(model, pixels),
    )
    return Verification(model.cfg.model_name, model.parts.family, len(model.hook_dict), checks)


def _language_checks(
    model: HookedLM, ids: Tensor | None, generator: torch.Generator
) -> tuple[Check, ...]:
    if ids is None:
        shape = (2, min(16, model.cfg.n_ctx))
        ids = torch.randint(model.cfg.d_vocab, shape, generator=generator)
    ids = ids.to(model.cfg.device)
    return (
        _parity(model, ids),
        _identity(model, ids),
        _causality(model, ids[:1], generator),
        _pattern(model, ids),
        _decomposition(model, ids),
        _no_look_ahead(model, ids),
    )


def _no_look_ahead(model: HookedLM, ids: Tensor) -> Check:
    """Other tokens at the end of a text change nothing before them."""
    half = ids.shape[1] // 2
    changed = torch.cat((ids[:, :half], (ids[:, half:] + 1) % model.cfg.d_vocab), dim=1)
    before, after = model(ids), model(changed)
    check = _within(
        model, "no look-ahead", after[:, :half], before[:, :half], "tokens before a change"
    )
    moved = not torch.equal(after[:, half:], before[:, half:])
    return replace(check, passed=check.passed and moved)


def _within(
    model: HookedViT | HookedLM, name: str, found: Tensor, expected: Tensor, what: str
) -> Check:
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    error = float((found - expected).abs().max() / scale)
    narrow = model.cfg.fast_cpu == "bfloat16"  # between float32 tokens and a float32 output
    bound = TOLERANCE[torch.bfloat16 if narrow else expected.dtype]
    finite = bool(torch.isfinite(found).all() and torch.isfinite(expected).all())
    detail = f"{what}: largest relative error {error:.1e} (bound {bound:.0e})"
    if not finite:
        detail = f"{what}: NaN or inf"
    return Check(name, finite and found.shape == expected.shape and error <= bound, detail, error)


def _parity(model: HookedViT | HookedLM, pixels: Tensor) -> Check:
    expected = model.parts.reference(pixels)
    return _within(model, "parity", model(pixels), expected, "output against the source")


def _identity(model: HookedViT | HookedLM, pixels: Tensor) -> Check:
    """Reading every hook point must not change the output beyond the kernels' rounding."""
    expected = model(pixels)
    hooks = [(name, lambda activation, hook: activation) for name in model.hook_dict]
    return _within(
        model,
        "identity",
        model.run_with_hooks(pixels, fwd_hooks=[*hooks]),
        expected,
        "all hook points read",
    )


def _causality(model: HookedViT | HookedLM, pixels: Tensor, generator: torch.Generator) -> Check:
    """Overwrite one hook point after the other; each run starts at the block of its hook point."""
    output, tokens = model(pixels, return_type="both")
    residuals = [model(pixels, stop_at_layer=layer) for layer in range(model.cfg.n_layers + 1)]
    size = {} if isinstance(model, HookedLM) else {"image_size": tuple(pixels.shape[-2:])}
    silent = []
    for name in model.hook_dict:
        overwrite = (name, partial(_overwrite, generator=generator))
        layer = _first_block(name, model.cfg.n_layers)
        start = {} if layer is None else {"start_at_layer": layer, **size}
        new = model.run_with_hooks(
            pixels if layer is None else residuals[layer],
            return_type="both",
            fwd_hooks=[overwrite],
            **start,
        )
        if torch.equal(new[0], output) and torch.equal(new[1], tokens):
            silent.append(name)
    n_points = len(model.hook_dict)
    detail = f"{n_points - len(silent)} of {n_points} hook points move the output"
    return Check("causality", not silent, detail + (f"; silent: {silent[:6]}" if silent else ""))


def _first_block(name: str, n_layers: int) -> int | None:
    """The block that a hook point is in; n_layers behind the blocks, None before them."""
    if name.startswith("blocks."):
        return int(name.split(".")[1])
    return n_layers if name.startswith(("ln_final", "hook_pooled", "hook_out")) else None


def _overwrite(activation: Tensor, hook: Any, generator: torch.Generator) -> Tensor:
    noise = torch.randn(activation.shape, generator=generator).to(activation)
    # A norm's scale is positive; everything else may take any value.
    return noise.abs() + 0.5 if hook.name.endswith("hook_scale") else noise


def _pattern(model: HookedViT | HookedLM, pixels: Tensor) -> Check:
    _, cache = model.run_with_cache(pixels, names_filter=lambda name: name.endswith("hook_pattern"))
    sums = torch.stack([pattern.sum(dim=-1) for pattern in cache.values()])
    return _within(model, "pattern", sums, torch.ones_like(sums), "rows of every pattern sum to 1")


def _decomposition(model: HookedViT | HookedLM, pixels: Tensor) -> Check:
    """Heads and neurons times their output weights, plus biases, are what the layer writes."""
    wanted = ("hook_z", "hook_post", "hook_attn_out", "hook_mlp_out", "_post.hook_scale")
    _, cache = model.run_with_cache(pixels, names_filter=lambda name: name.endswith(wanted))
    found, expected = [], []
    for layer, block in enumerate(model.blocks):
        z, post = (cache[name, layer].to(block.mlp.W_out) for name in ("z", "post"))
        attn_out = torch.einsum("bthd,hdm->btm", z, block.attn.W_O) + block.attn.b_O
        mlp_out = post @ block.mlp.W_out + block.mlp.b_out
        for norm, out in (("ln1_post", attn_out), ("ln2_post", mlp_out)):
            found.append(out / cache.cache_dict.get(f"blocks.{layer}.{norm}.hook_scale", 1))
        expected += [cache["attn_out", layer], cache["mlp_out", layer]]
    return _within(
        model,
        "decomposition",
        torch.stack(found),
        torch.stack(expected),
        "z W_O + b_O, post W_out + b_out",
    )


def _layout(model: HookedViT, pixels: Tensor) -> Check:
    """Every patch row of the layout is the row that its pixels move most."""
    layout = model.layout(pixels.shape)
    _, cache = model.run_with_cache(pixels[:1], names_filter="hook_embed", stop_at_layer=0)
    base = cache["hook_embed"]
    if base.shape[1] != layout.n_tokens:
        return Check("layout", False, f"{base.shape[1]} token rows, {layout.n_tokens} in {layout}")
    wrong = [
        patch
        for patch in _corners(layout)
        if _moved_row(model, pixels[:1], base, patch) != _row(layout, patch)
    ]
    return Check(
        "layout", not wrong, f"{layout}" + (f"; misplaced patches {wrong}" if wrong else "")
    )


def _corners(layout: Any) -> Iterator[tuple[int, int]]:
    for row in sorted({0, layout.height - 1}):
        yield from ((row, column) for column in sorted({0, layout.width // 2, layout.width - 1}))


def _row(layout: Any, patch: tuple[int, int]) -> int:
    return layout.patches.start + patch[0] * layout.width + patch[1]


def _moved_row(model: HookedViT, pixels: Tensor, base: Tensor, patch: tuple[int, int]) -> int:
    height, width = model.parts.patch_size
    changed = pixels.clone()
    changed[
        ..., patch[0] * height : (patch[0] + 1) * height, patch[1] * width : (patch[1] + 1) * width
    ] += 1
    _, cache = model.run_with_cache(changed, names_filter="hook_embed", stop_at_layer=0)
    return int((cache["hook_embed"] - base).norm(dim=-1).argmax())


def _hidden_token(model: HookedViT, pixels: Tensor) -> Check:
    """A token added after the prefix and hidden from attention changes nothing that is read."""
    expected = torch.cat([part.flatten(1) for part in model(pixels, return_type="both")], dim=1)
    row = model.layout(pixels.shape).n_prefix

    def add(tokens: Tensor, hook: Any) -> Tensor:
        return torch.cat((tokens[:, :row], torch.ones_like(tokens[:, :1]), tokens[:, row:]), dim=1)

    def hide(mask: Tensor, hook: Any) -> Tensor:
        return mask.index_fill(-1, torch.tensor([row], device=mask.device), float("-inf"))

    hooks = [("hook_full_embed", add), (lambda name: name.endswith("hook_mask"), hide)]
    found = model.run_with_hooks(pixels, return_type="both", fwd_hooks=hooks)
    return _within(
        model,
        "hidden token",
        torch.cat([part.flatten(1) for part in found], dim=1),
        expected,
        "output and tokens with a hidden token added",
    )
