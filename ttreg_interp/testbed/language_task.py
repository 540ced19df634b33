"""Bigram-Backcopy: texts on which a head is active at a few tokens and has nothing to do elsewhere.

Source: arXiv 2410.13835, section 2.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ttreg_interp.errors import DataError

Ids = Int[Tensor, "batch token"]
Where = Bool[Tensor, "batch token"]


@dataclass(frozen=True)
class BackcopyTask:
    """A language of bigrams, with triggers after which something is copied.

        not a trigger:   next ~ P(. | token)
        backcopy:        next = the token before the trigger
        in context:      next = the answer of this trigger, drawn once for every text

    A text is BOS, one token by the stationary distribution of P, and so on. At a trigger the next token is
    certain (in context: from the trigger's second occurrence on); elsewhere a head that copies has
    nothing to do.

    Example:
        >>> task = BackcopyTask()
        >>> ids = task.sample(2, torch.Generator().manual_seed(0))
        >>> ids.shape, bool((ids[:, 0] == task.bos).all())
        (torch.Size([2, 49]), True)
    """

    in_context: bool = True
    """Which variant."""
    n_words: int = 32
    """Tokens beside BOS."""
    n_triggers: int = 3
    """The most frequent tokens are triggers."""
    length: int = 48
    """Tokens of a text, BOS not counted."""
    concentration: float = 0.3
    """Of the Dirichlet distribution that the rows of P are drawn from; small: few likely successors."""
    seed: int = 0
    """Of P."""

    def __post_init__(self) -> None:
        if not 1 <= self.n_triggers < self.n_words or self.length < 2 or self.concentration <= 0:
            raise DataError(
                f"A task has 1 to n_words - 1 triggers, texts of 2 tokens or more and a concentration "
                f"> 0; found n_triggers={self.n_triggers}, n_words={self.n_words}, "
                f"length={self.length}, concentration={self.concentration}."
            )

    @property
    def bos(self) -> int:
        """The token that every text begins with."""
        return self.n_words

    @property
    def n_tokens(self) -> int:
        """Size of the vocabulary, BOS included."""
        return self.n_words + 1

    @cached_property
    def transitions(self) -> Float[Tensor, "word next"]:
        """P, in which early words are the more frequent ones."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = torch.full((self.n_words, self.n_words), self.concentration)
        rows = torch._standard_gamma(shape, generator=generator) + 1e-6
        rows = rows * torch.linspace(2, 0.5, self.n_words)
        return rows / rows.sum(dim=1, keepdim=True)

    @cached_property
    def frequencies(self) -> Float[Tensor, " word"]:
        """The stationary distribution of P."""
        found = torch.full((self.n_words,), 1 / self.n_words)
        for _ in range(200):
            found = found @ self.transitions
        return found

    @cached_property
    def triggers(self) -> Int[Tensor, " trigger"]:
        """The most frequent words."""
        return self.frequencies.topk(self.n_triggers).indices

    def sample(self, n_texts: int, generator: torch.Generator) -> Ids:
        """Texts, [batch, 1 + length]."""
        words = torch.empty(n_texts, self.length, dtype=torch.long)
        answers = self._answers(n_texts, generator)
        start = self.frequencies.expand(n_texts, -1)
        words[:, 0] = torch.multinomial(start, 1, generator=generator)[:, 0]
        for place in range(1, self.length):
            before = words[:, place - 1]
            drawn = torch.multinomial(self.transitions[before], 1, generator=generator)[:, 0]
            if self.in_context:
                copied = answers.gather(1, before[:, None])[:, 0]
            else:
                copied = words[:, place - 2] if place > 1 else drawn
            words[:, place] = torch.where(torch.isin(before, self.triggers), copied, drawn)
        return torch.cat((torch.full((n_texts, 1), self.bos), words), dim=1)

    def _answers(self, n_texts: int, generator: torch.Generator) -> Int[Tensor, "batch word"]:
        """What follows each word of a text if it is a trigger; never a trigger itself."""
        words = torch.arange(self.n_words)
        others = words[~torch.isin(words, self.triggers)]
        drawn = torch.randint(len(others), (n_texts, self.n_words), generator=generator)
        return others[drawn]

    def certain(self, ids: Ids) -> Where:
        """Tokens whose successor the text determines: triggers, of which there is something to copy."""
        is_trigger = torch.isin(ids, self.triggers)
        if not self.in_context:
            is_trigger[:, :2] = False  # before the first word stands BOS
            return is_trigger
        same = ids[:, :, None] == ids[:, None, :]
        return is_trigger & same.tril(-1).any(dim=2)

    def free(self, ids: Ids) -> Where:
        """Words that are no triggers: a bigram draw follows."""
        return ~torch.isin(ids, self.triggers) & (ids != self.bos)

    @property
    def bigram_entropy(self) -> float:
        """The least loss after a word that is no trigger, in nats (words weighed by frequency)."""
        rows = -(self.transitions * self.transitions.log()).sum(dim=1)
        kept = torch.ones(self.n_words).index_fill(0, self.triggers, 0) * self.frequencies
        return float((rows * kept).sum() / kept.sum())
