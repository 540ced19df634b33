"""What the scripts on language models share: a model, texts, and its register neurons."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from matplotlib.figure import Figure
from torch import Tensor

from analyses._figures import COLUMN, bars, panels
from ttreg_interp.discovery.sink_neurons import SinkNeurons, SinkOptions, find_sink_neurons
from ttreg_interp.errors import DataError
from ttreg_interp.hooked import HookedLM, load, weights_hash
from ttreg_interp.interventions import Intervention
from ttreg_interp.metrics.intervals import Interval
from ttreg_interp.metrics.language import language_loss, read_texts, text_tokens
from ttreg_interp.testbed.language_task import BackcopyTask
from ttreg_interp.testbed.planted_lm import planted_lm

PLANTED = "testbed-lm:"
TRAINED = "testbed-lm:backcopy"


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """One language model on some texts."""

    out: Path
    """Folder for result.json, summary.md and figures."""
    lm: str = "testbed-lm:llama"
    """Spec of a language model: testbed-lm:FAMILY, testbed-lm:backcopy, llama2c:FILE, hf-lm:NAME, tl:NAME."""
    texts: str = ""
    """A JSON list of texts, or one text a line; a planted model writes its own."""
    limit: int = 32
    """At most so many texts."""
    length: int = 64
    """Tokens of each."""
    seed: int = 0
    """Of draws and intervals."""


@dataclass(frozen=True)
class Bench:
    """A model and its texts, ready to be measured."""

    config: TextConfig
    """Where they come from."""
    model: HookedLM
    """The model."""
    ids: Int[Tensor, "text token"]
    """The texts."""

    @classmethod
    def of(cls, config: TextConfig) -> "Bench":
        """Load what a configuration names."""
        model = load(config.lm)
        return cls(config, model, _ids(config, model))

    @cached_property
    def found(self) -> SinkNeurons:
        """Register neurons by discovery, none where the first token is no outlier."""
        return find_sink_neurons(self.model, self.ids, SinkOptions(seed=self.config.seed))

    def loss(self, arm: Intervention) -> Interval:
        """Nats a token under an intervention."""
        with self.model.intervened(arm):
            return language_loss(self.model, self.ids).loss(self.config.seed)

    def facts(self) -> Mapping[str, Any]:
        """Model and texts, with hashes."""
        return {
            "model": self.config.lm,
            "weights_sha256": weights_hash(self.model.source),
            "n_texts": len(self.ids),
            "n_tokens": self.ids.shape[1],
            "texts_sha256": hashlib.sha256(self.ids.cpu().numpy().tobytes()).hexdigest(),
        }


def _ids(config: TextConfig, model: HookedLM) -> Int[Tensor, "text token"]:
    if config.lm == TRAINED and not config.texts:
        generator = torch.Generator().manual_seed(config.seed)
        return BackcopyTask().sample(config.limit, generator)
    if config.lm.startswith(PLANTED) and not config.texts:
        family, _, seed = config.lm.removeprefix(PLANTED).partition("/")
        made = planted_lm(family, seed=int(seed or 0))
        return made.texts(config.limit, config.length, config.seed)
    if not config.texts:
        raise DataError(f"{config.lm} needs texts: --texts FILE, a JSON list or one text a line.")
    texts = read_texts(Path(config.texts))[: config.limit]
    return text_tokens(model, texts, config.length).ids


@dataclass(frozen=True)
class Losses:
    """The loss under every arm, the first of which is the intact model."""

    by_arm: Mapping[str, Interval]
    """Nats a token."""

    @classmethod
    def of(cls, bench: Bench, arms: Mapping[str, Intervention]) -> "Losses":
        """Run every arm."""
        return cls({name: bench.loss(arm) for name, arm in arms.items()})

    @property
    def rise(self) -> dict[str, float]:
        """Nats a token above the intact model."""
        intact = next(iter(self.by_arm.values())).estimate
        return {name: loss.estimate - intact for name, loss in self.by_arm.items()}

    def table(self) -> str:
        """Markdown."""
        rows = [(name, loss, f"{self.rise[name]:+.3f}") for name, loss in self.by_arm.items()]
        return markdown(("arm", "loss, nats a token", "change"), rows)

    def figure(self, height: float) -> Figure:
        """A bar an arm."""
        figure, ((axes,),) = panels(1, 1, height=height, width=COLUMN)
        bars(axes, self.by_arm)
        axes.set_xlabel("loss, nats a token")
        return figure

    def numbers(self) -> dict[str, Any]:
        """For result.json."""
        return {"loss": self.by_arm, "change": self.rise}


def random_ids(bench: Bench) -> Int[Tensor, "text token"]:
    """As many tokens drawn evenly from the vocabulary, behind the texts' first token, which does not
    come again: it may be what carries the massive activation wherever it stands."""
    generator = torch.Generator().manual_seed(bench.config.seed)
    first, others = bench.ids[:, :1].cpu(), bench.model.cfg.d_vocab - 1
    drawn = torch.randint(others, bench.ids.shape, generator=generator)
    drawn = (first + 1 + drawn) % (others + 1)
    return torch.cat((first, drawn[:, 1:]), dim=1).to(bench.ids.device)


def markdown(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])
