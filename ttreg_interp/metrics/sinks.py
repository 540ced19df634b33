"""Attention sinks of a language model, and what goes with them: drained values, residual peaks.

Sinks, drained values, residual peaks and massive activations are measured one by one: each may come
without the others (arXiv 2603.05498, sinks without massive activations).
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import DataError
from ttreg_interp.metrics._values import check_finite
from ttreg_interp.metrics.attention import SinkRate, attention_received, sink_rate
from ttreg_interp.metrics.intervals import Interval, mean_interval
from ttreg_interp.metrics.language import Texts, text_tokens


@dataclass(frozen=True)
class HeadSink:
    """One head, and the key that is taken for the sink."""

    layer: int
    """Which block."""
    head: int
    """Which head."""
    attention: Interval
    """Mean attention that the sink receives from the queries that see it (alpha)."""
    value_ratio: float
    """Norm of the sink's value over the median norm of the others': below 1 is a value drain."""
    dormant: float
    """Share of texts in which alpha exceeds epsilon: 1 always dormant, 0 always active."""


@dataclass(frozen=True)
class LayerSink:
    """The residual stream after one block."""

    layer: int
    """Which block."""
    peak: float
    """Norm of the sink's row over the median norm of the others', mean over texts."""
    bias_attention: float
    """Attention on keys that are no tokens (an attention bias), mean over heads and queries."""


@dataclass(frozen=True, eq=False)
class AttentionSinks:
    """What `attention_sinks` found."""

    model: str
    """Its spec or class."""
    rate: SinkRate
    """Sink rate of every key, with its epsilon and length."""
    key: int
    """The row that heads and layers are about; test-time registers come first."""
    n_texts: int
    """Texts."""
    n_short: int
    """Texts left out because they are shorter."""
    heads: tuple[HeadSink, ...]
    """All heads, in order."""
    layers: tuple[LayerSink, ...]
    """All layers, in order."""

    @property
    def dormant_heads(self) -> tuple[tuple[int, int], ...]:
        """(layer, head) that sink in every text."""
        return tuple((row.layer, row.head) for row in self.heads if row.dormant == 1)

    @property
    def switching_heads(self) -> tuple[tuple[int, int], ...]:
        """(layer, head) that sink in some texts and not in others: active-dormant heads."""
        return tuple((row.layer, row.head) for row in self.heads if 0 < row.dormant < 1)

    @property
    def best_key(self) -> int:
        """The key of the highest rate, of those that half of the queries or more see.

        Later keys are seen by few queries, of which each attends to itself.
        """
        return int(self.rate.per_key[: (self.rate.tokens + 1) // 2].argmax())

    @property
    def at_key(self) -> float:
        """Sink rate of the key."""
        return float(self.rate.per_key[self.key])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": self.model,
            "epsilon": self.rate.epsilon,
            "tokens": self.rate.tokens,
            "rate_per_key": self.rate.per_key.tolist(),
            "rate": self.at_key,
            "key": self.key,
            "n_texts": self.n_texts,
            "n_short": self.n_short,
            "heads": [asdict(row) for row in self.heads],
            "layers": [asdict(row) for row in self.layers],
        }

    def __str__(self) -> str:
        lines = [
            f"Attention sinks of {self.model}: {self.at_key:.1%} of heads at key {self.key} "
            f"(epsilon {self.rate.epsilon:g}, {self.rate.tokens} tokens, {self.n_texts} texts); highest "
            f"in the first half: {float(self.rate.per_key[self.best_key]):.1%} at key {self.best_key}",
            "",
            "layer   heads that sink   mean attention   value ratio   residual peak",
        ]
        for layer in self.layers:
            heads = [head for head in self.heads if head.layer == layer.layer]
            sinking = sum(head.attention.estimate > self.rate.epsilon for head in heads)
            attention = sum(head.attention.estimate for head in heads) / len(heads)
            ratio = sum(head.value_ratio for head in heads) / len(heads)
            lines.append(
                f"{layer.layer:5d}   {sinking:2d} of {len(heads):<9d}   {attention:<14.3f}   "
                f"{ratio:<11.3g}   {layer.peak:.3g}"
            )
        return "\n".join(lines)


@torch.no_grad()
def attention_sinks(
    model: Any,
    texts: Texts,
    *,
    epsilon: float = 0.3,
    length: int | None = None,
    key: int = 0,
    batch_size: int = 8,
    seed: int = 0,
) -> AttentionSinks:
    r"""How many heads have a sink, which, and what the sink's values and residuals are like.

    $$\alpha_k(l, h) = \frac{1}{T - k} \sum_{i \ge k} A_{i,k}, \qquad
      \mathrm{Sink}_k^\epsilon = \frac{1}{L H} \sum_{l,h} [\alpha_k(l, h) > \epsilon].$$

    The rate depends on epsilon and on T: it is printed with both, and compares at equal ones only.

    Args:
        model: a HookedLM, under whatever `model.intervened(...)` it stands.
        texts: strings, or token ids [batch, token].
        epsilon: attention above which a key is a sink of a head.
        length: tokens of each text (T); see `metrics.language.text_tokens`. 64 in the source.
        key: the row that heads and layers are told about: 0 is the first token, or the first
            test-time register where there is one.
        batch_size: texts of one forward pass.
        seed: of the intervals, which are over texts.

    Raises:
        DataError: no text is long enough, a key that the texts do not have, NaN or inf.

    Source: arXiv 2410.10781, section 3 (rate); arXiv 2410.13835 (value drain, residual peak,
        dormant heads).

    Example:
        >>> from ttreg_interp.hooked import HookedLM
        >>> from ttreg_interp.testbed.planted_lm import planted_lm
        >>> planted = planted_lm()
        >>> found = attention_sinks(HookedLM.wrap(planted.module), planted.texts(4, 32))
        >>> found.at_key, found.dormant_heads[:3]
        (0.5, ((2, 1), (2, 2), (2, 3)))
    """
    tokens = text_tokens(model, texts, length)
    run = _Run(model, key)
    for ids in tokens.batches(batch_size):
        run.add(ids)
    received = run.received()
    return AttentionSinks(
        model=str(model.cfg.model_name),
        rate=sink_rate(received, epsilon=epsilon),
        key=key,
        n_texts=len(tokens.ids),
        n_short=tokens.n_short,
        heads=tuple(run.head_sinks(received, epsilon, seed)),
        layers=tuple(run.layer_sinks()),
    )


def proxy_weights(scores: Float[Tensor, "*rows key"]) -> Float[Tensor, "*rows key"]:
    """Weights for kernels whose scores are signed or do not sum to one: |s| / sum |s|.

    Args:
        scores: what takes the place of the pattern; masked keys are 0.

    Returns:
        Rows that sum to one, for `attention_received`; rows of zeros stay zeros.

    Raises:
        DataError: no scores, or NaN or infinite ones.

    Source: arXiv 2410.10781, the authors' answer on other kernels.

    Example:
        >>> proxy_weights(torch.tensor([[-3.0, 1.0]])).tolist()
        [[0.75, 0.25]]
    """
    check_finite(scores, "scores")
    size = scores.abs()
    return size / size.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)


class _Run:
    """What the batches have shown so far: one tensor a batch, [layer, batch, ...]."""

    def __init__(self, model: Any, key: int):
        self.model, self.key = model, key
        self.seen: dict[str, list[Tensor]] = {}
        self.now: dict[str, list[Tensor]] = {}

    def add(self, ids: Tensor) -> None:
        self.now = {"received": [], "bias": [], "values": [], "peak": []}
        hooks = [
            (f"blocks.{layer}.{point}", read)
            for layer in range(self.model.cfg.n_layers)
            for point, read in (
                ("attn.hook_v", self._read_values),
                ("attn.hook_pattern", self._read_pattern),
                ("hook_resid_post", self._read_residual),
            )
        ]
        self.model.run_with_hooks(ids, fwd_hooks=hooks, stop_at_layer=self.model.cfg.n_layers)
        for name, layers in self.now.items():
            self.seen.setdefault(name, []).append(torch.stack(layers).cpu())

    def _read_values(self, v: Float[Tensor, "batch key head d_head"], hook: Any) -> None:
        self.v = v

    def _read_pattern(self, pattern: Float[Tensor, "batch head query key"], hook: Any) -> None:
        n_rows = pattern.shape[2]
        if not 0 <= self.key < n_rows:
            raise DataError(f"key={self.key}: these texts have rows 0 to {n_rows - 1}.")
        own = pattern[..., pattern.shape[3] - n_rows :]  # an attention bias stands in front
        self.now["received"].append(attention_received(own, causal=True))
        self.now["bias"].append(1 - own.double().sum(dim=-1).mean(dim=(1, 2)))
        norms = self.v[:, -n_rows:].double().norm(dim=-1).transpose(1, 2)
        self.now["values"].append(_over_others(norms, self.key))

    def _read_residual(self, resid: Float[Tensor, "batch token d_model"], hook: Any) -> None:
        check_finite(resid, hook.name)
        self.now["peak"].append(_over_others(resid.double().norm(dim=-1), self.key))

    def received(self) -> Float[Tensor, "layer batch head key"]:
        return torch.cat(self.seen["received"], dim=1)

    def head_sinks(self, received: Tensor, epsilon: float, seed: int) -> list[HeadSink]:
        alpha = received[..., self.key]
        ratio = torch.cat(self.seen["values"], dim=1).mean(dim=1)
        return [
            HeadSink(
                layer,
                head,
                attention=mean_interval(alpha[layer, :, head], seed),
                value_ratio=float(ratio[layer, head]),
                dormant=float((alpha[layer, :, head] > epsilon).double().mean()),
            )
            for layer in range(alpha.shape[0])
            for head in range(alpha.shape[2])
        ]

    def layer_sinks(self) -> list[LayerSink]:
        peaks, bias = (torch.cat(self.seen[name], dim=1).mean(dim=1) for name in ("peak", "bias"))
        return [
            LayerSink(layer, peak, share)
            for layer, (peak, share) in enumerate(zip(peaks.tolist(), bias.tolist(), strict=True))
        ]


def _over_others(norms: Float[Tensor, "*rows token"], key: int) -> Float[Tensor, "*rows"]:
    """The norm of one token over the median norm of the others."""
    others = torch.cat((norms[..., :key], norms[..., key + 1 :]), dim=-1)
    return norms[..., key] / others.median(dim=-1).values.clamp_min(1e-12)
