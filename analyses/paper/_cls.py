"""What [CLS] takes from which tokens in one attention layer: an exact sum of parts."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses._bench import Bench
from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.interventions import Intervention

SELF, REGISTERS, OUTLIERS, PATCHES = "[CLS] itself", "registers", "outlier patches", "other patches"


@dataclass(frozen=True)
class ClsParts:
    """[CLS] in one block: what comes in, what attention adds from each group of tokens."""

    parts: Mapping[str, Float[Tensor, "image d_model"]]
    """Group -> sum over its tokens and all heads of pattern x value x W_O. Not renormalised."""
    attention: Mapping[str, Float[Tensor, " image"]]
    """Group -> its share of the attention of [CLS], mean over heads."""
    by_patch: Float[Tensor, "image patch"]
    """Attention of [CLS] to each patch, mean over heads: the map that people look at."""
    given: Float[Tensor, "image patch"]
    """Norm of what each patch gives: of the sum over heads of pattern x value x W_O."""
    full: Float[Tensor, "image d_model"]
    """What all tokens give: the sum of all parts. Without the output bias, which no token gives and
    which would be most of a cosine."""
    added: Float[Tensor, "image d_model"]
    """Output of attention, bias included: what is added to `skip`."""
    skip: Float[Tensor, "image d_model"]
    """[CLS] as it enters the block."""
    final: Float[Tensor, "image d_model"]
    """[CLS] after the last block, before the final norm."""


def groups(bench: Bench, arm: Intervention) -> dict[str, Bool[Tensor, "image token"]]:
    """Tokens by kind; outliers are those of the intact model at the same places, in every arm."""
    layout = bench.layout(arm)
    chosen = {
        name: torch.zeros(len(bench.pixels), layout.n_tokens, dtype=torch.bool)
        for name in (SELF, REGISTERS, OUTLIERS, PATCHES)
    }
    chosen[SELF][:, layout.cls] = True
    chosen[REGISTERS][:, layout.n_cls : layout.patches.start] = True
    chosen[OUTLIERS][:, layout.patches] = bench.is_outlier
    chosen[PATCHES][:, layout.patches] = ~bench.is_outlier
    return chosen


def cls_parts(bench: Bench, arm: Intervention, layer: int) -> ClsParts:
    """The parts of [CLS] in a block, for all images.

    Raises:
        UnsupportedModelError: no [CLS], or attention whose output is no sum over tokens (a gate or
            a norm behind the values).
    """
    if not bench.layout().n_cls:
        raise UnsupportedModelError(f"{bench.model.cfg.model_name} has no [CLS] to take apart.")
    path = f"blocks.{layer}"
    found = bench.collect(
        {
            "pattern": (f"{path}.attn.hook_pattern", lambda pattern: pattern[:, :, 0]),
            "value": (f"{path}.attn.hook_v", lambda value: value),
            "added": (f"{path}.hook_attn_out", lambda out: out[:, 0]),
            "skip": (f"{path}.hook_resid_pre", lambda resid: resid[:, 0]),
            "final": (f"blocks.{bench.last}.hook_resid_post", lambda resid: resid[:, 0]),
        },
        arm,
    )
    attn = bench.model.blocks[layer].attn
    weight = attn.W_O.detach().float()
    parts, attention = {}, {}
    for name, chosen in groups(bench, arm).items():
        pattern = found["pattern"] * chosen[:, None]
        mixed = torch.einsum("bhk,bkhd->bhd", pattern, found["value"])
        parts[name] = torch.einsum("bhd,hdm->bm", mixed, weight)
        attention[name] = pattern.sum(dim=2).mean(dim=1)
    patches = bench.layout(arm).patches
    given = [
        torch.einsum("bhk,bkhd,hdm->bkm", pattern[..., patches], value[:, patches], weight).norm(
            dim=2
        )
        for pattern, value in zip(found["pattern"].split(16), found["value"].split(16), strict=True)
    ]
    full = sum(parts.values(), torch.zeros_like(found["added"]))
    missing = full + attn.b_O.detach().float() - found["added"]
    if missing.norm() > 1e-3 * found["added"].norm():
        raise UnsupportedModelError(
            f"Block {layer} of {bench.model.cfg.model_name}: attention is no plain sum over tokens "
            f"(parts miss {missing.norm() / found['added'].norm():.1%}); these measures do not apply."
        )
    by_patch = found["pattern"][..., patches].mean(dim=1)
    whole = (full, found["added"], found["skip"], found["final"])
    return ClsParts(parts, attention, by_patch, torch.cat(given), *whole)
