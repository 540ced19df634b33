"""Register neurons of a language model: those that write the massive residual of its sink tokens.

The scores are those of images (`discovery.scores`). The outliers are the first token of every text,
tokens of given ids (delimiters), or whatever tokens stand out by their norm. A text's first token sees
nothing but itself, so that its residual is the same in all texts; what the texts add is the ordinary
tokens that it is compared with.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
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
from ttreg_interp.interventions import (
    ExtraTokens,
    MeanNeurons,
    NeuronSet,
    TestTimeRegister,
    ZeroNeurons,
)
from ttreg_interp.interventions.base import Empty, Intervention
from ttreg_interp.metrics.intervals import Interval
from ttreg_interp.metrics.language import (
    Ids,
    LanguageLoss,
    Texts,
    TextTokens,
    language_loss,
    text_tokens,
    token_name,
)


@dataclass(frozen=True)
class SinkOptions:
    """Every choice of the search."""

    tokens: str | tuple[int, ...] = "first"
    """Which tokens may be outliers: 'first', of every text; 'any'; or those of these ids."""
    emerged: float = 4.0
    """An outlier's norm is so many times the median of the text's other tokens."""
    score: str = "projection"
    """Ranks the neurons; see `FindConfig.score`."""
    top_k: int | None = None
    """How many neurons; None: as few as take the excess norm down to `suppress_to`."""
    suppress_to: float = 0.05
    """Share of the outliers' excess norm that may be left."""
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
        if self.emerged <= 1 or self.tokens == () or self.tokens not in ("first", "any", self._ids):
            raise DataError(
                f"tokens={self.tokens!r} is 'first', 'any' or a tuple of token ids; emerged="
                f"{self.emerged} is above 1, the median's own."
            )

    @property
    def _ids(self) -> tuple[int, ...]:
        return self.tokens if isinstance(self.tokens, tuple) else ()

    @property
    def where(self) -> str:
        """The candidates, in words."""
        words = {"first": "the first token", "any": "the largest token"}
        return words.get(str(self.tokens), f"the largest token of ids {list(self._ids)}")

    def candidates(self, ids: Ids) -> Bool[Tensor, "batch token"]:
        """Where an outlier may stand."""
        if self._ids:
            return torch.isin(ids, torch.tensor(self._ids, device=ids.device))
        places = torch.full_like(ids, self.tokens == "any", dtype=torch.bool)
        places[:, 0] = True
        return places


@dataclass(frozen=True)
class SinkArm:
    """The model under one intervention, on held-out texts."""

    peak: float
    """Largest norm of a candidate over the median norm of the others, at the detection layer."""
    loss: Interval
    """Nats a token."""


@dataclass(frozen=True, eq=False)
class SinkNeurons:
    """Register neurons of a language model, with evidence; interventions take it as it is."""

    neurons: NeuronSet
    """The register neurons; none where there is no outlier."""
    ranking: tuple[tuple[int, int, float], ...]
    """(layer, neuron, score) of the best, chosen ones first."""
    detect_layer: int
    """Block after which the candidates' norm is largest against the others'."""
    peak: float
    """That ratio of norms, mean over texts."""
    model: str
    """Its spec or class."""
    options: SinkOptions
    """Every choice."""
    share: float = 0.0
    """Of the outliers' distance from the others, what the chosen neurons wrote."""
    means: tuple[float, ...] = ()
    """Mean activation at the outliers, neuron by neuron in the order of the set."""
    outliers: Mapping[str, int] = field(default_factory=dict)
    """How many outliers of the scored texts each token was, the most frequent first."""
    arms: Mapping[str, SinkArm] = field(default_factory=dict)
    """Intact, zeroed, register, random (as many of the same layers, zeroed), and an added token with
    the neurons zeroed."""

    def by_layer(self) -> dict[int, tuple[int, ...]]:
        """Neurons of every layer that has some."""
        return self.neurons.by_layer()

    def register(self, visible_from_layer: int = 0) -> Intervention:
        """A test-time register in front of the text that takes over what these neurons write.

        The first token's activation is there in the same forward pass (`TestTimeRegister`). That of
        later tokens no register in front may know: it takes the stored mean (`means`) instead.

        Args:
            visible_from_layer: before this layer no token attends to it.

        Raises:
            InterventionError: no neurons were found.

        Example:
            >>> options = SinkOptions(tokens=(5,))
            >>> SinkNeurons(NeuronSet.of({1: [7]}), (), 1, 9.0, "gpt2", options, means=(2.0,)).register()
            <Sequence: 1 token added, zero after ln_pre, then zero in 1 neuron; layer 1: 7, then stored \
mean in 1 neuron; layer 1: 7, on test time registers>
        """
        if self.options.tokens == "first":
            return TestTimeRegister(self.neurons, visible_from_layer=visible_from_layer)
        empty = ExtraTokens(visible_from_layer=visible_from_layer) + ZeroNeurons(self.neurons)
        means = torch.tensor(self.means)
        return empty + MeanNeurons(self.neurons, means, tokens="test_time_registers")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": self.model,
            "neurons": self.neurons.to_dict(),
            "ranking": [list(row) for row in self.ranking],
            "detect_layer": self.detect_layer,
            "peak": self.peak,
            "share": self.share,
            "means": list(self.means),
            "outliers": dict(self.outliers),
            "arms": {name: asdict(arm) for name, arm in self.arms.items()},
            "options": asdict(self.options),
        }

    def __str__(self) -> str:
        norm = f"the norm of {self.options.where} is"
        if not len(self.neurons):
            return (
                f"No register neurons of {self.model}: {norm} at most {self.peak:.1f} x the others' "
                f"median (block {self.detect_layer}), and {self.options.emerged:g} x makes an outlier."
            )
        counts = ", ".join(f"{token!r} x {n}" for token, n in [*self.outliers.items()][:5])
        lines = [
            f"Register neurons of {self.model}: {self.neurons.describe()}. After block "
            f"{self.detect_layer} {norm} {self.peak:.1f} x the others' median (outliers: {counts}); "
            f"these neurons wrote {self.share:.0%} of the outliers' distance from the others."
        ]
        lines += [
            f"{name:10s} peak {arm.peak:8.2f}   loss {arm.loss}" for name, arm in self.arms.items()
        ]
        return "\n".join(lines)


@torch.no_grad()
def find_sink_neurons(model: Any, texts: Texts, options: SinkOptions | None = None) -> SinkNeurons:
    """Find the neurons that make the sink tokens of a language model's texts outliers.

    Args:
        model: a HookedLM.
        texts: strings, or token ids [batch, token].
        options: every choice; `SinkOptions(tokens="any")` looks beyond the first token.

    Returns:
        The neurons with evidence; none, with the norms, where no token is an outlier.

    Raises:
        DataError: fewer than 8 texts that are long enough and hold a candidate.
        ContractError: NaN or inf in the sums.

    Source: arXiv 2506.08010, Algorithm 1 (for images); arXiv 2402.17762 (massive activations of the
        first token and of delimiters).

    Example:
        >>> from ttreg_interp.hooked import HookedLM
        >>> from ttreg_interp.testbed.planted_lm import planted_lm
        >>> planted = planted_lm()
        >>> found = find_sink_neurons(HookedLM.wrap(planted.module), planted.texts(16, 32))
        >>> found.by_layer() == planted.truth
        True
    """
    options = options or SinkOptions()
    tokens = _with_candidates(text_tokens(model, texts, options.length), options)
    n_out = max(2, round(options.held_out * len(tokens.ids)))
    scored, others = (
        replace(tokens, ids=tokens.ids[n_out:]),
        replace(tokens, ids=tokens.ids[:n_out]),
    )
    peaks = _peaks(model, scored, options)
    layer = int(peaks.argmax())
    name = str(model.cfg.model_name)
    found = SinkNeurons(NeuronSet(), (), layer, float(peaks[layer]), name, options)
    if found.peak < options.emerged:
        return found
    scores, outliers = _scores(model, scored, layer, options)
    ranking = scores.ranking(options.score)
    k = options.top_k or _fewest(model, scored, ranking, found)
    neurons = NeuronSet.of([row[:2] for row in ranking[:k]])
    wrote = {row[:2]: row[2] for row in scores.ranking("projection")}
    found = replace(
        found,
        neurons=neurons,
        ranking=tuple(ranking[: max(2 * k, 50)]),
        share=sum(wrote[pair] for pair in neurons) / max(scores.excess, 1e-12),
        means=tuple(float(scores.statistics["signed"][pair]) for pair in neurons),
        outliers=outliers,
    )
    return replace(found, arms=_evidence(model, others, found))


def _with_candidates(tokens: TextTokens, options: SinkOptions) -> TextTokens:
    """The texts in which an outlier may stand."""
    some = options.candidates(tokens.ids).any(dim=1)
    if int(some.sum()) < 8:
        raise DataError(
            f"Found {int(some.sum())} texts with a candidate ({options.where}) among {len(some)}; give "
            "at least 8, better 100."
        )
    return replace(tokens, ids=tokens.ids[some])


def _over_others(
    resid: Float[Tensor, "batch token d_model"], candidates: Bool[Tensor, "batch token"]
) -> Float[Tensor, "batch token"]:
    """Norms over the median norm of the tokens that are no candidates (of all, where all are)."""
    norms = token_norms(resid).double()
    others = norms.masked_fill(candidates & ~candidates.all(dim=1, keepdim=True), torch.nan)
    return norms / others.nanmedian(dim=1, keepdim=True).values


def _peaks(model: Any, tokens: TextTokens, options: SinkOptions) -> Float[Tensor, " layer"]:
    """Largest norm of a candidate over the median of the others, by layer: mean over texts."""
    total = torch.zeros(model.cfg.n_layers, dtype=torch.float64)
    for ids in tokens.batches(options.batch_size):
        places = options.candidates(ids)

        def read(resid: Tensor, hook: Any, places: Tensor = places) -> None:
            ratios = _over_others(resid[:, model.n_added_tokens :], places)
            total[hook.layer()] += float(ratios.masked_fill(~places, 0).amax(dim=1).sum())

        hooks = [(f"blocks.{layer}.hook_resid_post", read) for layer in range(len(total))]
        model.run_with_hooks(ids, fwd_hooks=hooks, stop_at_layer=len(total))
    return total / len(tokens.ids)


def _observed(
    model: Any, tokens: TextTokens, layer: int, options: SinkOptions
) -> Iterator[tuple[Ids, Observation]]:
    """Every batch with its outliers, up to the detection layer."""
    kept: dict[str, Tensor] = {}
    site = f"blocks.{layer}.hook_resid_post"
    for ids in tokens.batches(options.batch_size):
        keep = (site, lambda resid, hook: kept.update(resid=resid))
        with mlp_inputs(model, range(layer + 1)) as inputs:
            model.run_with_hooks(ids, fwd_hooks=[keep], stop_at_layer=layer + 1)
        places = options.candidates(ids)
        outliers = places & (_over_others(kept["resid"], places) > options.emerged)
        above = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        yield ids, Observation(outliers, above, kept["resid"], inputs, {}, model.layout(ids.shape))


def _scores(
    model: Any, tokens: TextTokens, layer: int, options: SinkOptions
) -> tuple[NeuronScores, Mapping[str, int]]:
    """Scores of all neurons up to the detection layer, and which tokens the outliers were."""
    sums, first, counts = ExactSums(), 0, Counter[int]()
    for ids, seen in _observed(model, tokens, layer, options):
        index = torch.arange(first, first + len(ids))
        first += len(index)
        counts.update(ids[seen.outliers].tolist())
        chosen = ChosenTokens.of(
            seen, draw_ordinary(seen.outliers, seen.layout, index, options.seed)
        )
        sums.count("images", seen.outliers.any(dim=1).sum())
        sums.add("excess", chosen.excess().sum())
        sums.add("direction", (chosen.share @ chosen.away).sum(dim=0))
        layers = [
            layer_statistics(model.blocks[at].mlp, seen, chosen, at) for at in range(layer + 1)
        ]
        for name in STATISTICS:
            sums.add(name, torch.stack([one[name].sum(dim=0) for one in layers]))
    outliers = {token_name(model, token): n for token, n in counts.most_common()}
    return read_scores(model, range(layer + 1), sums), outliers


def _fewest(
    model: Any, tokens: TextTokens, ranking: list[tuple[int, int, float]], found: SinkNeurons
) -> int:
    """How many of the best must be zeroed; the number that helps most, if none is enough."""
    options = found.options
    some = replace(tokens, ids=tokens.ids[: options.batch_size])
    left: dict[int, float] = {}
    k = 1
    while k <= min(options.most, len(ranking)):
        arm = ZeroNeurons([row[:2] for row in ranking[:k]])
        with model.intervened(arm):
            left[k] = float(_peaks(model, some, options)[found.detect_layer])
        if left[k] - 1 <= options.suppress_to * (found.peak - 1):
            return k
        k += 1 if k < 8 else k // 4
    return min(left, key=lambda n: left[n])


def _evidence(model: Any, tokens: TextTokens, found: SinkNeurons) -> dict[str, SinkArm]:
    options, neurons = found.options, found.neurons
    random = neurons.matched_random(options.seed, model.cfg.d_mlp)
    arms: dict[str, Intervention] = {
        "intact": Empty(),
        "zeroed": ZeroNeurons(neurons),
        "register": found.register(),
        "random": ZeroNeurons(random),
        "added": ZeroNeurons(neurons) + ExtraTokens(),
    }
    measured = {}
    for name, arm in arms.items():
        with model.intervened(arm):
            peak = float(_peaks(model, tokens, options)[found.detect_layer])
            loss: LanguageLoss = language_loss(model, tokens.ids, batch_size=options.batch_size)
        measured[name] = SinkArm(peak, loss.loss(options.seed))
    return measured
