"""The testbed language model: a GPT-2 of three blocks, trained on Bigram-Backcopy in about a minute.

It is an ordinary `GPT2LMHeadModel`, so that `HookedLM` and TransformerLens load it like any other.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.testbed.language_attention import Kernel, use_kernel
from ttreg_interp.testbed.language_measures import Measures, measure
from ttreg_interp.testbed.language_task import BackcopyTask

Optimiser = Literal["adam", "sgd"]

SHIPPED = Path(__file__).parent / "language_model"
"""The trained checkpoint: what `transformers` reads, and `history.json` with how it came to be."""


@dataclass(frozen=True)
class LanguageConfig:
    """A model, its task and its training, in full."""

    task: BackcopyTask = field(default_factory=BackcopyTask)
    """What it learns."""
    kernel: Kernel = "softmax"
    """Attention."""
    optimiser: Optimiser = "adam"
    """Adam, or plain SGD."""
    seed: int = 0
    """Of weights and texts."""
    width: int = 64
    """d_model."""
    depth: int = 3
    """Blocks."""
    heads: int = 1
    """Heads of a layer."""
    steps: int = 2500
    """Updates."""
    batch: int = 32
    """Texts of an update."""
    learning_rate: float | None = None
    """None: 4e-3 for Adam, 0.3 for SGD."""
    warmup: int = 100
    """Updates until the learning rate is reached."""
    measured: int = 10
    """Times that it is measured on the way, besides the beginning."""

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.learning_rate or {"adam": 4e-3, "sgd": 0.3}[self.optimiser]


def untrained(config: LanguageConfig) -> Any:
    """A GPT-2 with random weights: LayerNorm, learned positions, ReLU."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config.task.n_tokens,
                n_positions=config.task.length + 1,
                n_embd=config.width,
                n_layer=config.depth,
                n_head=config.heads,
                n_inner=4 * config.width,
                activation_function="relu",
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                tie_word_embeddings=False,
                bos_token_id=config.task.bos,
                eos_token_id=config.task.bos,
            )
        )
        use_kernel(model, config.kernel)
    return model.eval()


def train(config: LanguageConfig) -> tuple[Any, list[Measures]]:
    """A trained model, and what was measured on the way, on texts that it does not see.

    Source: arXiv 2410.13835, section 2 and appendix (sizes reduced; weight decay 0).
    """
    if config.optimiser not in ("adam", "sgd"):
        raise UnsupportedModelError(f"No optimiser {config.optimiser!r}; there are adam and sgd.")
    model, generator = untrained(config), torch.Generator().manual_seed(config.seed + 1)
    pool = config.task.sample(512 * config.batch, generator)
    held_out = config.task.sample(128, generator)
    makers: dict[str, Any] = {"adam": _adam, "sgd": torch.optim.SGD}
    optimiser = makers[config.optimiser](model.parameters(), lr=config.rate)
    history = [measure(model, config.task, held_out, step=0)]
    for step in range(1, config.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = config.rate * min(1.0, step / config.warmup)
        drawn = torch.randint(len(pool), (config.batch,), generator=generator)
        loss = _loss(model, pool[drawn])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % max(1, config.steps // config.measured) == 0:
            history.append(measure(model, config.task, held_out, step=step))
    return model, history


def _adam(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)


def _loss(model: Any, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def backcopy_lm() -> Any:
    """The shipped model: softmax, Adam, the in-context task, seed 2 of 0 to 4.

    It was chosen of the five because it has a sink and a norm; see `histories.jsonl` for the others.

    Example:
        >>> model = backcopy_lm()
        >>> model.config.n_layer, model.config.vocab_size
        (3, 33)
    """
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(SHIPPED, attn_implementation="eager").eval()
