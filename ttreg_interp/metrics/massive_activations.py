"""Massive activations of a language model: which entries, on which tokens, after which blocks."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ttreg_interp.metrics import norms
from ttreg_interp.metrics.language import Texts, text_tokens, token_name

Where = Literal["register", "first", "later"]


@dataclass(frozen=True)
class MassiveEntry:
    """One dimension that is massive on one token, after one block."""

    layer: int
    """The block after which it is seen."""
    dim: int
    """Dimension of the residual stream."""
    where: Where
    """On a test-time register, on the first token, or on a later one."""
    token: str
    """The token's text, or its id where the model has no tokenizer; '' of a register."""
    value: float
    """Mean over the tokens where it is massive, sign kept."""
    n_tokens: int
    """On how many tokens of all texts it is massive."""


@dataclass(frozen=True)
class LayerMagnitudes:
    """Magnitudes |x| after one block, as means over texts."""

    layer: int
    """The block."""
    top: tuple[float, float, float]
    """The three largest."""
    median: float
    """The median."""
    n_massive: float
    """Massive entries of a text."""


@dataclass(frozen=True)
class MassiveActivations:
    """What `massive_activations` found."""

    model: str
    """Its spec or class."""
    absolute: float
    """Magnitude that a massive activation exceeds."""
    relative: float
    """Multiple of the text's median magnitude that it exceeds as well."""
    n_texts: int
    """Texts."""
    n_tokens: int
    """Tokens of each."""
    n_short: int
    """Texts left out because they are shorter."""
    layers: tuple[LayerMagnitudes, ...]
    """Layer by layer."""
    entries: tuple[MassiveEntry, ...]
    """All massive entries, by layer, then by magnitude."""

    @property
    def found(self) -> bool:
        """Whether there is any."""
        return bool(self.entries)

    @property
    def dims(self) -> tuple[int, ...]:
        """Dimensions that are massive anywhere."""
        return tuple(sorted({entry.dim for entry in self.entries}))

    @property
    def step_up(self) -> int | None:
        """The first block after which there are some; None without any."""
        return min((entry.layer for entry in self.entries), default=None)

    @property
    def step_down(self) -> int | None:
        """The block that takes the last of them back; None if they are there to the end."""
        last = max((entry.layer for entry in self.entries), default=None)
        return None if last is None or last == self.layers[-1].layer else last + 1

    def at(self, layer: int) -> tuple[MassiveEntry, ...]:
        """Those after one block."""
        return tuple(entry for entry in self.entries if entry.layer == layer)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **asdict(self),
            "dims": list(self.dims),
            "step_up": self.step_up,
            "step_down": self.step_down,
        }

    def summary(self) -> str:
        """The findings in a sentence or two."""
        condition = f"|x| > {self.absolute:g} and > {self.relative:g} x median"
        of = f"{self.n_texts} texts of {self.n_tokens} tokens"
        if not self.found:
            row = max(self.layers, key=lambda layer: layer.top[0] / max(layer.median, 1e-12))
            return (
                f"No massive activations ({condition}) in {of} of {self.model}: the largest entry is "
                f"{row.top[0]:.3g}, {row.top[0] / max(row.median, 1e-12):.0f} x the median, after block "
                f"{row.layer} (means over texts)."
            )
        down = "the end" if self.step_down is None else f"block {self.step_down}"
        places = sorted({entry.where for entry in self.entries})
        return (
            f"Massive activations ({condition}) in {of} of {self.model}: dimensions {list(self.dims)}, "
            f"from block {self.step_up} to {down}, on tokens: {', '.join(places)}."
        )

    def __str__(self) -> str:
        lines = [self.summary(), "", "layer   top 1      top 2      top 3      median   massive"]
        lines += [
            f"{row.layer:5d}   {row.top[0]:<10.4g} {row.top[1]:<10.4g} {row.top[2]:<10.4g} "
            f"{row.median:<8.3g} {row.n_massive:.1f}"
            for row in self.layers
        ]
        return "\n".join(lines)


@torch.no_grad()
def massive_activations(
    model: Any,
    texts: Texts,
    *,
    length: int | None = None,
    absolute: float = 100.0,
    relative: float = 1000.0,
    batch_size: int = 8,
) -> MassiveActivations:
    """Which entries of the residual stream are massive: |x| > absolute and > relative x median |x|.

    The median is that of the text, over tokens and dimensions. Both conditions are needed: a large
    norm is none, and neither is a large ratio in a stream of small numbers.

    Args:
        model: a HookedLM, under whatever `model.intervened(...)` it stands.
        texts: strings, or token ids [batch, token].
        length: tokens of each; see `metrics.language.text_tokens`.
        absolute: magnitude to exceed.
        relative: multiple of the median to exceed.
        batch_size: texts of one forward pass.

    Raises:
        DataError: no text is long enough, or NaN or inf in the stream.

    Source: arXiv 2402.17762, section 2 (definition), Fig. 1-3 (curves).

    Example:
        >>> from ttreg_interp.hooked import HookedLM
        >>> from ttreg_interp.testbed.planted_lm import planted_lm
        >>> planted = planted_lm()
        >>> found = massive_activations(HookedLM.wrap(planted.module), planted.texts(4, 32))
        >>> found.dims == planted.dims, found.step_up, found.step_down
        (True, 1, 5)
    """
    tokens = text_tokens(model, texts, length)
    sums = _Sums(model, absolute, relative)
    for ids in tokens.batches(batch_size):
        sums.add(ids)
    return MassiveActivations(
        model=str(model.cfg.model_name),
        absolute=absolute,
        relative=relative,
        n_texts=len(tokens.ids),
        n_tokens=tokens.ids.shape[1],
        n_short=tokens.n_short,
        layers=sums.layers(len(tokens.ids)),
        entries=sums.entries(),
    )


class _Sums:
    """Running sums over texts."""

    def __init__(self, model: Any, absolute: float, relative: float):
        self.model, self.absolute, self.relative = model, absolute, relative
        self.magnitudes = torch.zeros(model.cfg.n_layers, 5, dtype=torch.float64)
        self.values: dict[tuple[int, int, Where, str], list[float]] = defaultdict(list)

    def add(self, ids: Tensor) -> None:
        sites = [f"blocks.{layer}.hook_resid_post" for layer in range(self.model.cfg.n_layers)]
        hooks = [
            (site, lambda resid, hook, layer=layer: self._read(layer, resid, ids))
            for layer, site in enumerate(sites)
        ]
        self.model.run_with_hooks(ids, fwd_hooks=hooks, stop_at_layer=len(sites))

    def _read(self, layer: int, resid: Float[Tensor, "batch token d_model"], ids: Tensor) -> None:
        massive = norms.massive_entries(resid, self.absolute, self.relative)
        flat = resid.flatten(1).abs().double()
        row = torch.cat(
            (flat.topk(3, dim=1).values, flat.quantile(0.5, dim=1, keepdim=True)), dim=1
        )
        self.magnitudes[layer, :4] += row.sum(dim=0).cpu()
        self.magnitudes[layer, 4] += float(massive.sum())
        self._keep(layer, resid, massive, ids)

    def _keep(
        self, layer: int, resid: Tensor, massive: Bool[Tensor, "batch token d_model"], ids: Tensor
    ) -> None:
        n_registers = resid.shape[1] - ids.shape[1]
        for text, row, dim in massive.nonzero().tolist():
            where, token = _place(self.model, ids[text], row - n_registers)
            self.values[layer, dim, where, token].append(float(resid[text, row, dim]))

    def layers(self, n_texts: int) -> tuple[LayerMagnitudes, ...]:
        means = (self.magnitudes / n_texts).tolist()
        return tuple(
            LayerMagnitudes(layer, (row[0], row[1], row[2]), row[3], row[4])
            for layer, row in enumerate(means)
        )

    def entries(self) -> tuple[MassiveEntry, ...]:
        found = [
            MassiveEntry(*key, value=_mean(values), n_tokens=len(values))
            for key, values in self.values.items()
        ]
        return tuple(sorted(found, key=lambda entry: (entry.layer, -abs(entry.value), entry.dim)))


def _place(model: Any, ids: Tensor, position: int) -> tuple[Where, str]:
    """Where a row of the stream stands, and what token it is."""
    if position < 0:
        return "register", ""
    return "later" if position else "first", token_name(model, int(ids[position]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
