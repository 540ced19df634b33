"""The register of vision transformers in a language model, step by step.

Paper and place: arXiv 2506.08010, Algorithms 1 and 2 and Table 7 (ViT); arXiv 2402.17762 and 2410.10781 (what \
they meet in a language model).
Question: do a few neurons write the norm of the sink token, and does a token that starts empty take over norm, \
sink and loss once their activation is moved to it?
Command: python -m analyses.llm.transfer --out OUT
Runtime: 30 s on one CPU core for the planted model.
Expect: planted: two neurons; zeroed, norm and sink are gone and the loss rises; moved, the register has all of \
both and the loss is nearly back; random neurons move nothing; stories260K: no neurons, and nothing to move; the \
trained testbed model needs --emerged 1.5, for its norms are small.
In the paper: OpenCLIP B/16, zero-shot: 71.3 intact, 55.6 neurons zeroed, 71.3 test-time register, 69.3 ± 1.1 ten \
random neurons zeroed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from analyses._figures import GREY, PAGE, RED, bars, panels
from analyses._run import Findings, main
from analyses.llm._bench import Bench, TextConfig, markdown
from ttreg_interp.discovery.sink_neurons import SinkNeurons, SinkOptions, find_sink_neurons
from ttreg_interp.interventions import Empty, ExtraTokens, Intervention, ZeroNeurons
from ttreg_interp.metrics.intervals import Interval, controls_interval, paired_difference
from ttreg_interp.metrics.language import language_loss
from ttreg_interp.metrics.massive_activations import massive_activations
from ttreg_interp.metrics.sinks import attention_sinks

LITERATURE = (
    ("ViT: norm of outliers goes, accuracy stays", "71.3, 55.6, 71.3 (intact, zeroed, register)"),
    ("share of heads with a sink (epsilon .3, 64 tokens)", "Llama-3-8B 99.0 %, Llama-2-7B 92.5 %"),
    ("largest entry, median", "Llama-2-7B 2547 on a delimiter, 768 on the first token; .2"),
    ("entries set to zero, to their mean", "Llama-2-7B perplexity 5.47: infinite, 5.47"),
    ("k', v' trained in the sink's place", "GPT-2 loss 3.04 as without, no massive activations"),
)
"""From arXiv 2506.08010, 2410.10781 and 2402.17762; no register was moved in a language model there."""


@dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """One language model on some texts, half of which find the neurons; the others measure."""

    emerged: float = 4.0
    """A token is an outlier from this ratio of its norm to the others' median on."""
    sinks: str = "first"
    """Which tokens may be outliers: first, any, or token ids separated by commas."""
    draws: int = 5
    """Sets of random neurons that are moved instead."""

    @property
    def options(self) -> SinkOptions:
        """Of the search."""
        ids = tuple(int(part) for part in self.sinks.split(",") if part.strip().isdecimal())
        return SinkOptions(tokens=ids or self.sinks, emerged=self.emerged, seed=self.seed)


@dataclass(frozen=True)
class Arm:
    """The model under one intervention, text by text."""

    sink: float
    """Share of heads that sink at an outlier candidate, in the first half of the text."""
    sink_register: float
    """... at the added token; 0 without one."""
    norm: float
    """Largest norm of a candidate over the median of the text, at the detection layer."""
    norm_register: float
    """... of the added token."""
    massive: tuple[str, ...]
    """Where massive activations stand: register, first, later."""
    loss: Float[Tensor, " text"]
    """Nats a token."""

    @classmethod
    def of(cls, bench: Bench, arm: Intervention, found: SinkNeurons) -> "Arm":
        """Measure it."""
        model, ids = bench.model, bench.ids
        places = found.options.candidates(ids)
        with model.intervened(arm):
            n_added = model.n_added_tokens
            rate = attention_sinks(model, ids, seed=bench.config.seed).rate.per_image
            massive = massive_activations(model, ids).entries
            loss = language_loss(model, ids).per_text
            norms = _norms(bench, found.detect_layer, n_added)
        early = places & (torch.arange(ids.shape[1], device=ids.device) < (ids.shape[1] + 1) // 2)
        return cls(
            sink=_largest(rate[:, n_added:], early),
            sink_register=float(rate[:, :n_added].sum(dim=1).mean()),
            norm=_largest(norms[:, n_added:], places),
            norm_register=float(norms[:, :n_added].sum(dim=1).mean()),
            massive=tuple(sorted({entry.where for entry in massive})),
            loss=loss,
        )


def _norms(bench: Bench, layer: int, n_added: int) -> Float[Tensor, "text token"]:
    """Of every row over the median of the text's."""
    name = f"blocks.{layer}.hook_resid_post"
    _, cache = bench.model.run_with_cache(bench.ids, names_filter=name)
    norms = cache[name].norm(dim=-1)
    return norms / norms[:, n_added:].median(dim=1, keepdim=True).values


def _largest(values: Float[Tensor, "text token"], places: Bool[Tensor, "text token"]) -> float:
    return float(values.cpu().masked_fill(~places.cpu(), 0).amax(dim=1).mean())


def parts(ids: Int[Tensor, "text token"]) -> tuple[Tensor, Tensor]:
    """Texts that find the neurons, and texts that measure."""
    n_scored = max(8, len(ids) // 2)
    return ids[:n_scored], ids[n_scored:]


def arms(found: SinkNeurons) -> dict[str, Intervention]:
    """What is compared; without register neurons only what an empty token does."""
    plain = {"intact": Empty(), "control: empty token": ExtraTokens()}
    if not len(found.neurons):
        return plain
    zeroed = ZeroNeurons(found.neurons)
    late = found.detect_layer + 1
    return {
        "intact": Empty(),
        "neurons zeroed": zeroed,
        "register": found.register(),
        f"register, seen from layer {late}": found.register(late),
        "control: empty token": plain["control: empty token"],
        "control: empty token, neurons zeroed": zeroed + ExtraTokens(),
    }


def random_arms(found: SinkNeurons, config: Config, d_mlp: int) -> list[Intervention]:
    """As many random neurons of the same layers moved in the same way, a draw each."""
    if not len(found.neurons):
        return []
    drawn = [found.neurons.matched_random(config.seed + 1 + i, d_mlp) for i in range(config.draws)]
    return [replace(found, neurons=neurons).register() for neurons in drawn]


def analyse(config: Config) -> Findings:
    """Find, move, measure."""
    whole = Bench.of(config)
    scored, measured = parts(whole.ids)
    bench = replace(whole, ids=measured)
    found = find_sink_neurons(whole.model, scored, config.options)
    results = {name: Arm.of(bench, arm, found) for name, arm in arms(found).items()}
    random = [
        Arm.of(bench, arm, found) for arm in random_arms(found, config, bench.model.cfg.d_mlp)
    ]
    if random:
        results[f"control: random neurons moved, {len(random)} draws"] = _mean(random)
    intact = results["intact"].loss
    change = {
        name: paired_difference(arm.loss, intact, config.seed) for name, arm in results.items()
    }
    numbers = {name: vars(arm) | {"change": change[name]} for name, arm in results.items()}
    draws = [float((arm.loss - intact).mean()) for arm in random]
    return Findings(
        headline=_headline(results, change),
        words=_words(found, results, change),
        numbers={
            "arms": numbers,
            "neurons": found.to_dict(),
            "draws": controls_interval(draws) if len(draws) > 1 else draws,
        },
        figures={"figure": _figure(results, change)},
        facts={**whole.facts(), "n_texts_measured": len(measured)},
    )


def _mean(random: list[Arm]) -> Arm:
    """Field by field, over draws."""
    names = ("sink", "sink_register", "norm", "norm_register")
    means = {name: sum(getattr(arm, name) for arm in random) / len(random) for name in names}
    massive = tuple(sorted({where for arm in random for where in arm.massive}))
    return Arm(**means, massive=massive, loss=torch.stack([arm.loss for arm in random]).mean(dim=0))


def _headline(results: Mapping[str, Arm], change: Mapping[str, Interval]) -> str:
    if "register" not in results:
        empty = change["control: empty token"].estimate
        return f"no register neurons; an empty token alone changes the loss by {empty:+.4f}"
    before, after = results["intact"], results["register"]
    return (
        f"sink {before.sink:.2f} -> {after.sink_register:.2f} on the register, norm {before.norm:.3g} -> "
        f"{after.norm_register:.3g}; loss {change['neurons zeroed'].estimate:+.3f} zeroed, "
        f"{change['register'].estimate:+.3f} moved"
    )


def _words(found: SinkNeurons, results: Mapping[str, Arm], change: Mapping[str, Interval]) -> str:
    header = ("arm", "heads that sink: text", "register", "norm: text", "register", "massive on")
    rows = [
        (
            name,
            *(f"{value:.2f}" for value in (arm.sink, arm.sink_register)),
            *(f"{value:.3g}" for value in (arm.norm, arm.norm_register)),
            ", ".join(arm.massive) or "none",
            change[name],
        )
        for name, arm in results.items()
    ]
    table = markdown((*header, "change of loss, nats a token"), rows)
    papers = markdown(("in the literature", "found"), list(LITERATURE))
    said = str(found).splitlines()[0]
    return f"{said}\n\n{table}\n\nLosses against the intact model, text by text.\n\n{papers}"


def _figure(results: Mapping[str, Arm], change: Mapping[str, Interval]) -> Figure:
    figure, ((left, right),) = panels(1, 2, height=0.5 + 0.22 * len(results), width=PAGE)
    bars(left, change)
    left.set_xlabel("change of loss, nats a token")
    places = range(len(results))
    text, register = (
        [getattr(arm, name) for arm in results.values()] for name in ("sink", "sink_register")
    )
    right.barh(places, text, color=GREY, label="text")
    right.barh(places, register, left=text, color=RED, label="added token")
    right.set(yticks=[], ylim=left.get_ylim(), xlabel="share of heads that sink")
    right.legend()
    return figure


if __name__ == "__main__":
    main(globals())
