"""Texts as token ids, and how well a language model predicts them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from ttreg_interp.errors import DataError, UnsupportedModelError
from ttreg_interp.hooked.language import HookedLM
from ttreg_interp.metrics._values import check_finite
from ttreg_interp.metrics.intervals import Interval, mean_interval

Ids = Int[Tensor, "batch token"]
Texts = Ids | Sequence[str]


@dataclass(frozen=True)
class TextTokens:
    """Texts cut to one length."""

    ids: Ids
    """The first tokens of every text that is long enough, BOS included."""
    n_short: int = 0
    """Texts left out because they are shorter."""

    def batches(self, batch_size: int) -> Iterator[Ids]:
        """The ids, some texts at a time."""
        yield from self.ids.split(batch_size)


def text_tokens(model: Any, texts: Texts, length: int | None = None) -> TextTokens:
    """Texts as token ids of one length: longer ones are cut, shorter ones left out and counted.

    Args:
        model: a HookedLM; its tokenizer is asked. None, for ids alone.
        texts: strings, or token ids [batch, token], which are cut too.
        length: tokens of each, BOS included; None: all of given ids, 64 of strings.

    Raises:
        UnsupportedModelError: a model of images, or one without hook points.
        DataError: no text is long enough.

    Example:
        >>> text_tokens(None, torch.zeros(2, 9, dtype=torch.long), 4).ids.shape
        torch.Size([2, 4])
    """
    _check_reads_texts(model)
    if isinstance(texts, Tensor):
        rows = list(texts)
        length = texts.shape[1] if length is None else length
    else:
        rows = [torch.tensor(model.encode(text)) for text in texts]
        length = 64 if length is None else length
    kept = [row[:length] for row in rows if len(row) >= length]
    if not kept or length < 2:
        longest = max((len(row) for row in rows), default=0)
        raise DataError(
            f"None of {len(rows)} texts has {length} tokens (the longest has {longest}), or the length "
            "is below 2. Give longer texts or a smaller length."
        )
    ids = torch.stack(kept)
    return TextTokens(ids if model is None else ids.to(model.cfg.device), len(rows) - len(kept))


def _check_reads_texts(model: Any) -> None:
    if not isinstance(model, HookedLM | None):
        raise UnsupportedModelError(
            f"{type(model).__name__} is no HookedLM, so it reads no texts. Load a language model with "
            "tt.load('hf-lm:NAME') or HookedLM.wrap(module); for a vision transformer use "
            "tt.find_outliers(model, images) and tt.find_register_neurons(model, images)."
        )


def read_texts(file: Path) -> Texts:
    """The texts of a file: one a line, or a JSON list of texts or of equally long lists of token ids.

    Raises:
        DataError: no such file, or something else in it.
    """
    if not file.is_file():
        raise DataError(f"No file of texts at {file}.")
    raw = file.read_text(encoding="utf-8")
    texts = json.loads(raw) if file.suffix == ".json" else raw.splitlines()
    rows = texts if isinstance(texts, list) else []
    if rows and all(isinstance(row, str) for row in rows):
        return rows
    try:
        ids = torch.tensor(rows)
    except (TypeError, ValueError, RuntimeError):
        ids = torch.empty(0)
    if ids.ndim != 2 or ids.dtype != torch.long:
        raise DataError(
            f"{file} holds neither texts, one a line, nor a JSON list of texts or of equally long lists "
            "of token ids."
        )
    return ids


def token_name(model: Any, token: int) -> str:
    """A token's text, or its id where the model has no tokenizer."""
    return str(token) if model.tokenizer is None else model.tokenizer.decode([token])


@dataclass(frozen=True, eq=False)
class LanguageLoss:
    """How well texts are predicted, in nats a token."""

    per_token: Float[Tensor, "batch token"]
    """-log p(token | those before it), for every token but the first."""
    n_short: int = 0
    """Texts left out because they are too short."""

    @property
    def per_text(self) -> Float[Tensor, " batch"]:
        """Mean over the tokens of each text."""
        return self.per_token.mean(dim=1)

    def loss(self, seed: int = 0) -> Interval:
        """Mean over texts, with its interval."""
        return mean_interval(self.per_text, seed)

    def perplexity(self, seed: int = 0) -> Interval:
        """exp(loss); the ends of the interval are those of the loss."""
        loss = self.loss(seed)
        ends = [exp(value) for value in (loss.estimate, loss.low, loss.high)]
        return Interval(*ends, level=loss.level, method=f"exp of {loss.method}", n=loss.n)


@torch.no_grad()
def language_loss(
    model: Any, texts: Texts, length: int | None = None, batch_size: int = 8
) -> LanguageLoss:
    """Loss of a language model on every token: -log p(token | those before it).

    Args:
        model: a HookedLM, under whatever `model.intervened(...)` it stands.
        texts: strings, or token ids [batch, token].
        length: tokens of each; see `text_tokens`.
        batch_size: texts of one forward pass.

    Raises:
        DataError: no text is long enough, or NaN in the logits.

    Example:
        >>> from ttreg_interp.testbed.planted_lm import planted_lm
        >>> from ttreg_interp.hooked import HookedLM
        >>> planted = planted_lm()
        >>> found = language_loss(HookedLM.wrap(planted.module), planted.texts(4, 16))
        >>> found.per_token.shape, found.loss().n
        (torch.Size([4, 15]), 4)
    """
    tokens = text_tokens(model, texts, length)
    losses = []
    for ids in tokens.batches(batch_size):
        logits = model(ids)
        check_finite(logits, f"logits of {model.cfg.model_name}")
        per_token = cross_entropy(
            logits[:, :-1].flatten(0, 1).double(), ids[:, 1:].flatten(), reduction="none"
        )
        losses.append(per_token.view(len(ids), -1).cpu())
    return LanguageLoss(torch.cat(losses), tokens.n_short)
