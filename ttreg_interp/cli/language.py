"""`ttreg language`: massive activations, attention sinks and register neurons of a language model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ttreg_interp.cli.common import emit


@dataclass(frozen=True, kw_only=True)
class Language:
    """Say whether a language model has massive activations and attention sinks on some texts: where, how
    large, in which blocks and heads; and which neurons write them."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """hf-lm:ORGANISATION/MODEL or a local directory, tl:NAME, llama2c:FILE.bin, testbed-lm:FAMILY."""
    texts: Path
    """A file of one text a line, or a JSON list of texts or of lists of token ids."""
    limit: int = 100
    """Use at most so many texts."""
    length: int = 64
    """Tokens of each, BOS included; longer texts are cut, shorter ones left out."""
    epsilon: float = 0.3
    """Attention above which a key is a sink of a head."""
    tokens: str = "first"
    """Which tokens register neurons are looked for on: first, or any."""
    device: str | None = None
    """cpu, cuda, ... Default: cuda where there is one."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        """Measure, print."""
        import torch

        from ttreg_interp.discovery.sink_neurons import SinkOptions, find_sink_neurons
        from ttreg_interp.hooked import load
        from ttreg_interp.metrics.language import language_loss, read_texts, text_tokens
        from ttreg_interp.metrics.massive_activations import massive_activations
        from ttreg_interp.metrics.sinks import attention_sinks

        model = load(
            self.model, device=self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        )
        ids = text_tokens(model, read_texts(self.texts)[: self.limit], self.length).ids
        massive = massive_activations(model, ids)
        sinks = attention_sinks(model, ids, epsilon=self.epsilon)
        neurons = find_sink_neurons(model, ids, SinkOptions(tokens=self.tokens))
        loss = language_loss(model, ids).loss()
        found = {"massive_activations": massive, "sinks": sinks, "neurons": neurons, "loss": loss}
        body = {"model": self.model, **{name: one.to_dict() for name, one in found.items()}}
        emit(
            body, self.json, str(massive), f"\n{sinks}", f"\n{neurons}\n\nLoss {loss} nats a token"
        )
        return 0
