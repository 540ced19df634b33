"""Vision-language models: a test-time register in the vision tower, and attention from an answer to the image."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product, starmap
from math import isqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ttreg_interp.errors import ContractError, DataError
from ttreg_interp.hooked import HookedViT
from ttreg_interp.interventions import Empty, Intervention

Stream = Float[Tensor, "batch token d_model"]
TOLERANCE = 1e-4
"""Largest difference, relative to the largest entry, between the tower and its hooked twin; in half
precision 8 units in the last place."""


@contextmanager
def registered(vlm: nn.Module, intervention: Intervention) -> Iterator[HookedViT]:
    """Inside, the vision tower of a LLaVA-style model runs under an intervention.

    The tower is hooked in place: its hidden states are those of the hooked model, test-time
    registers dropped, so that the projector and the language model see as many tokens as ever. On
    entry the hooked tower is compared with the tower itself on noise.

    Args:
        vlm: a model of transformers that holds a vision tower, e.g. LlavaForConditionalGeneration.
        intervention: e.g. `TestTimeRegister(neurons)`.

    Yields:
        The hooked tower.

    Raises:
        UnsupportedModelError: no tower that a source file knows.
        ContractError: the tower's hidden states are not those of its blocks.
        InterventionError: the intervention does not fit the tower, or no image went through it.

    Source:
        arXiv 2506.08010, section 5.4 and table 6.
    """
    model = HookedViT.wrap(vlm)
    tower: Any = model.source
    tower.forward = partial(_forward, model, _check_twin(model, tower))
    try:
        with model.intervened(intervention):
            yield model
    finally:
        del tower.forward  # the class's own comes back


@dataclass(frozen=True)
class _Normed:
    """What a tower returns after its final norm, and what before it."""

    last: bool
    """`last_hidden_state`."""
    states: bool
    """The last of `hidden_states`."""


def _forward(model: HookedViT, normed: _Normed, pixel_values: Tensor, **kwargs: Any) -> Any:
    """What the tower returns, with the states of the hooked model."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    *states, plain = _states(model, pixel_values)
    ended = plain if model.parts.ln_final is None else model.ln_final(plain)
    return BaseModelOutputWithPooling(
        last_hidden_state=ended if normed.last else plain,
        hidden_states=(*states, ended if normed.states else plain),
    )


def _states(model: HookedViT, pixels: Tensor) -> tuple[Stream, ...]:
    """The residual stream before every block and after the last, without test-time registers."""
    layout = model.layout(pixels.shape)
    kept: list[Tensor] = []

    def keep(resid: Tensor, hook: Any) -> None:
        kept.append(layout.of_length(resid.shape[1]).drop_registers(resid))

    n_layers = model.cfg.n_layers
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(n_layers)]
    with model.hooks(fwd_hooks=[(name, keep) for name in names]):
        last = model(pixels, stop_at_layer=n_layers)
    return (*kept, layout.of_length(last.shape[1]).drop_registers(last))


@torch.no_grad()
def _check_twin(model: HookedViT, tower: Any) -> _Normed:
    """Which of its last states the tower norms; raises where states differ otherwise."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, model.parts.n_channels, *model.image_size, generator=generator)
    pixels = pixels.to(model.cfg.device, model.cfg.dtype)
    expected = tower(pixels, output_hidden_states=True, return_dict=True)
    for last, states in product((False, True), repeat=2):
        with model.intervened(Empty()):
            found = _forward(model, _Normed(last, states), pixels)
        pairs = zip(_all_states(found), _all_states(expected), strict=False)
        if len(found.hidden_states) == len(expected.hidden_states) and all(starmap(_close, pairs)):
            return _Normed(last, states)
    raise ContractError(
        f"The hidden states of {type(tower).__name__} ({len(expected.hidden_states)}) are not those "
        "before its blocks and after the last, so a register cannot be put into it in place."
    )


def _all_states(output: Any) -> tuple[Stream, ...]:
    return (output.last_hidden_state, *output.hidden_states)


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    bound = max(TOLERANCE, 8 * torch.finfo(expected.dtype).eps)
    return bool((found - expected).abs().max() <= bound * expected.abs().max())


@torch.no_grad()
def answer_attention(
    vlm: Any, inputs: dict[str, Tensor], query: int = -1
) -> Float[Tensor, "batch grid_height grid_width"]:
    """Attention from the token that answers to each visual token, mean over all layers and heads.

    Args:
        vlm: a LLaVA-style model of transformers; runs with eager attention for this.
        inputs: what its processor returns, one square image a text.
        query: place of the answer's token in the text; -1: the last, from which it is predicted.

    Returns:
        A map over the image for each text.

    Raises:
        DataError: texts without, or with different numbers of, image tokens, or not a square (several
            tiles, as of LLaVA-NeXT, are none); or padding where the answer's token should be.

    Source:
        arXiv 2506.08010, Fig. 6 and 32.
    """
    visual = inputs["input_ids"] == vlm.config.image_token_id
    counts = sorted({int(count) for count in visual.sum(dim=1)})
    side = isqrt(counts[0])
    if len(counts) != 1 or counts[0] == 0 or side * side != counts[0]:
        raise DataError(
            f"Found texts with {counts} image tokens; a map needs the same square number in each."
        )
    mask = inputs.get("attention_mask")
    if mask is not None and not mask[:, query].all():
        raise DataError(
            f"Place {query} is padding in text {int((mask[:, query] == 0).nonzero()[0])}. Pad on the "
            "left (processor.tokenizer.padding_side = 'left'), or give texts one by one."
        )
    before = vlm.config.get_text_config()._attn_implementation
    # fused kernels return no attention; the tower keeps its own
    vlm.set_attn_implementation({"text_config": "eager"})
    try:
        layers = vlm(**inputs, output_attentions=True, return_dict=True).attentions
    finally:
        vlm.set_attn_implementation({"text_config": before})
    rows = torch.stack([layer[:, :, query].float().mean(dim=1) for layer in layers]).mean(dim=0)
    return rows[visual].view(len(rows), side, side)
