"""Register neurons of a language model: those that write the massive residual of its first token.

The scores are those of images (`discovery.scores`), with the first token of every text, the sink, as
the outlier. A text's first token sees nothing but itself, so that its residual is the same in all
texts; what the texts add is the ordinary tokens that it is compared with.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.discovery.capture import mlp_inputs, token_norms
from ttreg_interp.discovery.config import SCORES
from ttreg_interp.discovery.exact import ExactSums
from ttreg_interp.discovery.observe import Observation, draw_ordinary
from ttreg_interp.discovery.scores import (
    STATISTICS,
    ChosenTokens,
    NeuronScores,
    layer_statistics,
    read_scores,
)
from ttreg_interp.errors import DataError
from ttreg_interp.interventions import ExtraTokens, NeuronSet, TestTimeRegister, ZeroNeurons
from ttreg_interp.interventions.base import Empty, Intervention
from ttreg_interp.metrics.intervals import Interval
from ttreg_interp.metrics.language import (
    LanguageLoss,
    Texts,
    TextTokens,
    language_loss,
    text_tokens,
)

EMERGED = 4.0
"""The first token is an outlier where its norm is so many times the others' median."""


@dataclass(frozen=True)
class SinkOptions:
    """Every choice of the search."""

    score: str = "projection"
    """Ranks the neurons; see `FindConfig.score`."""
    top_k: int | None = None
    """How many neurons; None: as few as take the excess norm down to `suppress_to`."""
    suppress_to: float = 0.05
    """Share of the first token's excess norm that may be left."""
    most: int = 64
    """Most neurons that are tried."""
    held_out: float = 0.25
    """Share of the texts kept from scoring, on which the evidence is measured."""
    length: int | None = None
    """Tokens of each text; see `metrics.language.text_tokens`."""
    batch_size: int = 8
    """Texts of one forward pass."""
    seed: int = 0
    """Of the draws of ordinary tokens and random neurons, and of the intervals."""

    def __post_init__(self) -> None:
        if self.score not in SCORES or not 0 < self.held_out < 1 or not 0 <= self.suppress_to < 1:
            raise DataError(
                f"score={self.score!r} is one of {', '.join(SCORES)}; held_out={self.held_out} and "
                f"suppress_to={self.suppress_to} are shares."
            )


@dataclass(frozen=True)
class SinkArm:
    """The model under one intervention, on held-out texts."""

    peak: float
    """Norm of the first token over the median norm of the others, at the detection layer."""
    loss: Interval
    """Nats a token."""


@dataclass(frozen=True, eq=False)
class SinkNeurons:
    """Register neurons of a language model, with evidence; interventions take it as it is."""

    neurons: NeuronSet
    """The register neurons; none where the first token is no outlier."""
    ranking: tuple[tuple[int, int, float], ...]
    """(layer, neuron, score) of the best, chosen ones first."""
    detect_layer: int
    """Block after which the first token's norm is largest against the others'."""
    peak: float
    """That ratio of norms."""
    share: float
    """Of the first token's distance from the others, what the chosen neurons wrote."""
    arms: Mapping[str, SinkArm]
    """Intact, zeroed, register, random (as many of the same layers, zeroed), and an added token with
    the neurons zeroed."""
    model: str
    """Its spec or class."""
    options: SinkOptions
    """Every choice."""

    def by_layer(self) -> dict[int, tuple[int, ...]]:
        """Neurons of every layer that has some."""
        return self.neurons.by_layer()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": self.model,
            "neurons": self.neurons.to_dict(),
            "ranking": [list(row) for row in self.ranking],
            "detect_layer": self.detect_layer,
            "peak": self.peak,
            "share": self.share,
            "arms": {name: asdict(arm) for name, arm in self.arms.items()},
            "options": asdict(self.options),
        }

    def __str__(self) -> str:
        if not len(self.neurons):
            return (
                f"No register neurons of {self.model}: the first token's norm is at most {self.peak:.1f} "
                f"x the others' median (block {self.detect_layer}), and {EMERGED:g} x makes an outlier."
            )
        lines = [
            f"Register neurons of {self.model}: {self.neurons.describe()}. The first token's norm is "
            f"{self.peak:.1f} x the others' median after block {self.detect_layer}; these neurons wrote "
            f"{self.share:.0%} of its distance."
        ]
        lines += [
            f"{name:10s} peak {arm.peak:8.2f}   loss {arm.loss}" for name, arm in self.arms.items()
        ]
        return "\n".join(lines)


@torch.no_grad()
def find_sink_neurons(model: Any, texts: Texts, options: SinkOptions | None = None) -> SinkNeurons:
    """Find the neurons that make the first token of a language model's texts an outlier.

    Args:
        model: a HookedLM.
        texts: strings, or token ids [batch, token].
        options: every choice.

    Returns:
        The neurons with evidence; none, with the norms, where the first token is no outlier.

    Raises:
        DataError: fewer than 8 texts, or none long enough.
        ContractError: NaN or inf in the sums.

    Source: arXiv 2506.08010, Algorithm 1 (for images); arXiv 2402.17762 (the first token's massive
        activations).

    Example:
        >>> from ttreg_interp.hooked import HookedLM
        >>> from ttreg_interp.testbed.planted_lm import planted_lm
        >>> planted = planted_lm()
        >>> found = find_sink_neurons(HookedLM.wrap(planted.module), planted.texts(16, 32))
        >>> found.by_layer() == planted.truth
        True
    """
    options = options or SinkOptions()
    tokens = text_tokens(model, texts, options.length)
    if len(tokens.ids) < 8:
        raise DataError(f"Found {len(tokens.ids)} texts; give at least 8, better 100.")
    n_out = max(2, round(options.held_out * len(tokens.ids)))
    scored, others = (
        replace(tokens, ids=tokens.ids[n_out:]),
        replace(tokens, ids=tokens.ids[:n_out]),
    )
    peaks = _peaks(model, scored, options.batch_size)
    layer = int(peaks.argmax())
    found = SinkNeurons(
        NeuronSet(), (), layer, float(peaks[layer]), 0.0, {}, str(model.cfg.model_name), options
    )
    if found.peak < EMERGED:
        return found
    scores = _scores(model, scored, layer, options)
    ranking = scores.ranking(options.score)
    k = options.top_k or _fewest(model, scored, layer, ranking, found.peak, options)
    neurons = NeuronSet.of([row[:2] for row in ranking[:k]])
    wrote = {row[:2]: row[2] for row in scores.ranking("projection")}
    return replace(
        found,
        neurons=neurons,
        ranking=tuple(ranking[: max(2 * k, 50)]),
        share=sum(wrote[pair] for pair in neurons) / max(scores.excess, 1e-12),
        arms=_evidence(model, others, layer, neurons, options),
    )


def _peaks(model: Any, tokens: TextTokens, batch_size: int) -> Float[Tensor, " layer"]:
    """Norm of the first token over the median of the others, by layer: mean over texts."""
    total = torch.zeros(model.cfg.n_layers, dtype=torch.float64)

    def read(resid: Tensor, hook: Any) -> None:
        norms = token_norms(resid[:, model.n_added_tokens :]).double()
        ratio = norms[:, 0] / norms[:, 1:].median(dim=1).values
        total[hook.layer()] += float(ratio.sum())

    hooks = [(f"blocks.{layer}.hook_resid_post", read) for layer in range(model.cfg.n_layers)]
    for ids in tokens.batches(batch_size):
        model.run_with_hooks(ids, fwd_hooks=hooks, stop_at_layer=model.cfg.n_layers)
    return total / len(tokens.ids)


def _observed(model: Any, tokens: TextTokens, layer: int, batch_size: int) -> Iterator[Observation]:
    """Every batch with its first tokens as outliers, up to the detection layer."""
    kept: dict[str, Tensor] = {}
    site = f"blocks.{layer}.hook_resid_post"
    for ids in tokens.batches(batch_size):
        keep = (site, lambda resid, hook: kept.update(resid=resid))
        with mlp_inputs(model, range(layer + 1)) as inputs:
            model.run_with_hooks(ids, fwd_hooks=[keep], stop_at_layer=layer + 1)
        outliers = torch.zeros(kept["resid"].shape[:2], dtype=torch.bool, device=ids.device)
        outliers[:, 0] = True
        above = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        yield Observation(outliers, above, kept["resid"], inputs, {}, model.layout(ids.shape))


def _scores(model: Any, tokens: TextTokens, layer: int, options: SinkOptions) -> NeuronScores:
    sums, first = ExactSums(), 0
    for seen in _observed(model, tokens, layer, options.batch_size):
        index = torch.arange(first, first + len(seen.resid))
        first += len(index)
        chosen = ChosenTokens.of(
            seen, draw_ordinary(seen.outliers, seen.layout, index, options.seed)
        )
        sums.count("images", torch.tensor(len(index)))
        sums.add("excess", chosen.excess().sum())
        sums.add("direction", (chosen.share @ chosen.away).sum(dim=0))
        layers = [
            layer_statistics(model.blocks[at].mlp, seen, chosen, at) for at in range(layer + 1)
        ]
        for name in STATISTICS:
            sums.add(name, torch.stack([one[name].sum(dim=0) for one in layers]))
    return read_scores(model, range(layer + 1), sums)


def _fewest(
    model: Any,
    tokens: TextTokens,
    layer: int,
    ranking: list[tuple[int, int, float]],
    peak: float,
    options: SinkOptions,
) -> int:
    """How many of the best must be zeroed; the number that helps most, if none is enough."""
    some = replace(tokens, ids=tokens.ids[: options.batch_size])
    left: dict[int, float] = {}
    k = 1
    while k <= min(options.most, len(ranking)):
        arm = ZeroNeurons([row[:2] for row in ranking[:k]])
        with model.intervened(arm):
            left[k] = float(_peaks(model, some, options.batch_size)[layer])
        if left[k] - 1 <= options.suppress_to * (peak - 1):
            return k
        k += 1 if k < 8 else k // 4
    return min(left, key=lambda n: left[n])


def _evidence(
    model: Any, tokens: TextTokens, layer: int, neurons: NeuronSet, options: SinkOptions
) -> dict[str, SinkArm]:
    random = neurons.matched_random(options.seed, model.cfg.d_mlp)
    arms: dict[str, Intervention] = {
        "intact": Empty(),
        "zeroed": ZeroNeurons(neurons),
        "register": TestTimeRegister(neurons),
        "random": ZeroNeurons(random),
        "added": ZeroNeurons(neurons) + ExtraTokens(),
    }
    found = {}
    for name, arm in arms.items():
        with model.intervened(arm):
            peak = float(_peaks(model, tokens, options.batch_size)[layer])
            loss: LanguageLoss = language_loss(model, tokens.ids, batch_size=options.batch_size)
        found[name] = SinkArm(peak, loss.loss(options.seed))
    return found
