r"""Language models of random weights in which a massive activation and a sink are planted.

Three pairs of dimensions are kept free of everything that is random; the two of a pair hold opposite
values, so that a LayerNorm's mean sees none of them:

    flag      1 on BOS, the first token of the vocabulary, 0 on all others: the embedding
    constant  1 on every token: the embedding
    massive   value on carriers after block `step_up`, 0 again after the last block

In block `step_up` the register neurons read the flag and write the massive pair; in the last block
one neuron reads it and takes it back. Between them all heads but the first of each layer have a query
that reads the constant and a key that reads the massive pair: a sink at the carriers, whose other content
the norm has made small, values included.

Delimiters may carry it too, or instead (`carriers`). Their flag is loud, since a neuron reads it behind a
norm, whose size their text decides.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ttreg_interp.errors import UnsupportedModelError
from ttreg_interp.hooked.language import HookedLM
from ttreg_interp.testbed.random_lm import random_lm

FAMILIES = ("llama", "gpt2", "gpt_neox")
"""Those that it is written for."""

FLAG, CONSTANT, MASSIVE = (-6, -5), (-4, -3), (-2, -1)
"""Dimensions of the pairs, from the end."""
SHARES = (0.6, 0.4)
"""What each register neuron writes of the massive value."""
SENTENCE = 12
"""Tokens up to a delimiter."""
_LOUD = 20.0
"""Flag of carriers where delimiters are among them: it makes up most of their norm."""
_DRIVE = 4.0
"""Input of a planted neuron where it fires, at a normed reading of one."""
_LOGIT = 8.0
"""About the score of the sink's key, at unit readings."""


@dataclass(frozen=True, eq=False)
class PlantedLM:
    """A language model, and what was put into it."""

    module: nn.Module
    """The model, as transformers has it."""
    truth: dict[int, tuple[int, ...]]
    """Register neurons by layer."""
    step_up: int
    """Block that writes the massive activation."""
    step_down: int
    """Block that takes it back."""
    dims: tuple[int, int]
    """Dimensions of the massive activation."""
    value: float
    """Its value on the first of them; on the second the opposite."""
    sink_heads: dict[int, tuple[int, ...]]
    """Heads that are made to attend to BOS, by layer."""
    carriers: tuple[int, ...] = (0,)
    """Tokens that carry it: BOS, or delimiters."""
    bos: int = 0
    """What every text begins with."""

    def texts(self, n: int = 16, length: int = 64, seed: int = 0) -> Int[Tensor, "text token"]:
        """Texts that the model itself draws, BOS first: what it predicts best.

        Delimiters that carry a massive activation are not drawn: one ends every `SENTENCE` tokens.
        """
        model, generator = HookedLM.wrap(self.module), torch.Generator().manual_seed(seed)
        ids = torch.full((n, 1), self.bos)
        delimiters = [token for token in self.carriers if token != self.bos]
        with torch.no_grad():
            while ids.shape[1] < length:
                chances = model(ids)[:, -1].softmax(dim=-1)
                chances[:, [self.bos, *self.carriers]] = 0
                drawn = torch.multinomial(chances, 1, generator=generator)
                if delimiters and ids.shape[1] % SENTENCE == 0:
                    drawn = torch.full_like(
                        drawn, delimiters[ids.shape[1] // SENTENCE % len(delimiters)]
                    )
                ids = torch.cat((ids, drawn), dim=1)
        return ids


@torch.no_grad()
def planted_lm(
    family: str = "llama",
    *,
    n_layers: int = 6,
    step_up: int = 1,
    value: float = 4000.0,
    sinks: bool = True,
    carriers: tuple[int, ...] = (0,),
    seed: int = 0,
) -> PlantedLM:
    """A random language model with a massive activation on BOS, and the sink that it makes.

    On a delimiter the value varies by some percent: BOS sees nothing but itself, a delimiter its text.

    Args:
        family: one of FAMILIES.
        n_layers: blocks.
        step_up: block that writes the massive activation; not the last.
        value: of it.
        sinks: whether heads are made to attend to it; without, massive activation and sink come
            apart.
        carriers: tokens that carry it; 0 is BOS, others are delimiters.
        seed: of the random weights.

    Raises:
        UnsupportedModelError: another family, a step-up block that is the last, or no carriers.

    Example:
        >>> planted = planted_lm("gpt2")
        >>> planted.truth, planted.step_down
        ({1: (7, 70)}, 5)
    """
    sizes: dict[str, Any] = {"d_model": 64, "vocabulary": 64, "n_ctx": 128, "seed": seed}
    fits = carriers and set(carriers) <= set(range(sizes["vocabulary"]))
    if family not in FAMILIES or not 0 <= step_up < n_layers - 1 or not fits:
        raise UnsupportedModelError(
            f"family={family!r}, step_up={step_up}, carriers={carriers}: the family is one of "
            f"{', '.join(FAMILIES)}, the step-up block 0 to {n_layers - 2}, and carriers are tokens 0 to "
            f"{sizes['vocabulary'] - 1}."
        )
    module = random_lm(family, n_layers=n_layers, **sizes)
    views = [_BlockViews.of(family, module, layer) for layer in range(n_layers)]
    _keep_free(module, views, carriers)
    neurons, heads = (7, 70), (1, 2, 3)
    _plant_reader(views[step_up], neurons, FLAG)
    _plant_reader(views[-1], neurons[:1], MASSIVE)
    between = range(step_up + 1, n_layers)
    for layer in between if sinks else ():
        _plant_sink(views[layer], heads)
    model = HookedLM.wrap(module)
    for neuron, share in zip(neurons, SHARES, strict=True):
        _write(model, views[step_up], step_up, neuron, share * value, carriers[0])
    _write(model, views[-1], n_layers - 1, neurons[0], -value, carriers[0])
    return PlantedLM(
        module=module,
        truth={step_up: neurons},
        step_up=step_up,
        step_down=n_layers - 1,
        dims=(sizes["d_model"] + MASSIVE[0], sizes["d_model"] + MASSIVE[1]),
        value=value,
        sink_heads={layer: heads for layer in between} if sinks else {},
        carriers=carriers,
    )


@dataclass(frozen=True)
class _BlockViews:
    """Weights of a block as views that may be written on, whatever the family's order of axes."""

    reads: tuple[Float[Tensor, "_ d_model"], ...]
    """Every map that reads the residual stream."""
    writes: tuple[Float[Tensor, "_ d_model"], ...]
    """Every map (and bias) that writes to it."""
    q: Float[Tensor, "head d_head d_model"]
    k: Float[Tensor, "group d_head d_model"]
    biases: tuple[Tensor, ...]
    """Of queries, keys and neurons."""
    out: Float[Tensor, "neuron d_model"]

    @classmethod
    def of(cls, family: str, module: Any, layer: int) -> "_BlockViews":
        return {"llama": _llama, "gpt2": _gpt2, "gpt_neox": _gpt_neox}[family](module, layer)

    @property
    def neurons(self) -> tuple[Tensor, ...]:
        """What neurons read: one map, or two in a gated MLP."""
        return tuple(rows for rows in self.reads if len(rows) == len(self.out))


def _llama(module: Any, layer: int) -> _BlockViews:
    block = module.model.layers[layer]
    attn, mlp, d_head = block.self_attn, block.mlp, block.self_attn.head_dim
    return _BlockViews(
        reads=(
            *(p.weight for p in (attn.q_proj, attn.k_proj, attn.v_proj)),
            mlp.gate_proj.weight,
            mlp.up_proj.weight,
        ),
        writes=(attn.o_proj.weight.T, mlp.down_proj.weight.T),
        q=attn.q_proj.weight.unflatten(0, (-1, d_head)),
        k=attn.k_proj.weight.unflatten(0, (-1, d_head)),
        biases=(),
        out=mlp.down_proj.weight.T,
    )


def _gpt2(module: Any, layer: int) -> _BlockViews:
    block = module.transformer.h[layer]
    attn, mlp = block.attn, block.mlp
    qkv = attn.c_attn.weight.T.unflatten(0, (3, attn.num_heads, -1))
    return _BlockViews(
        reads=(attn.c_attn.weight.T, mlp.c_fc.weight.T),
        writes=(
            attn.c_proj.weight,
            attn.c_proj.bias[None],
            mlp.c_proj.weight,
            mlp.c_proj.bias[None],
        ),
        q=qkv[0],
        k=qkv[1],
        biases=(attn.c_attn.bias, mlp.c_fc.bias),
        out=mlp.c_proj.weight,
    )


def _gpt_neox(module: Any, layer: int) -> _BlockViews:
    block = module.gpt_neox.layers[layer]
    attn, mlp = block.attention, block.mlp
    qkv = attn.query_key_value.weight.unflatten(0, (attn.config.num_attention_heads, 3, -1))
    return _BlockViews(
        reads=(attn.query_key_value.weight, mlp.dense_h_to_4h.weight),
        writes=(
            attn.dense.weight.T,
            attn.dense.bias[None],
            mlp.dense_4h_to_h.weight.T,
            mlp.dense_4h_to_h.bias[None],
        ),
        q=qkv[:, 0],
        k=qkv[:, 1],
        biases=(attn.query_key_value.bias, mlp.dense_h_to_4h.bias),
        out=mlp.dense_4h_to_h.weight.T,
    )


def _keep_free(module: Any, views: list[_BlockViews], carriers: tuple[int, ...]) -> None:
    """The pairs: written by the embedding alone, read by nobody; gains of one, no biases."""
    reserved = [*FLAG, *CONSTANT, *MASSIVE]
    for block in views:
        for rows in (*block.reads, *block.writes):
            rows[:, reserved] = 0
        for bias in block.biases:
            bias.zero_()
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1 and ("norm" in name or "ln_" in name):
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        if name.endswith("wpe.weight"):
            parameter[:, reserved] = 0
    module.lm_head.weight[:, reserved] = 0
    embedding = module.get_input_embeddings().weight
    embedding[:, reserved] = 0
    embedding[:, list(CONSTANT)] = torch.tensor([1.0, -1.0])
    flag = 1.0 if carriers == (0,) else _LOUD
    embedding[torch.tensor(carriers)[:, None], list(FLAG)] = torch.tensor([flag, -flag])


def _plant_reader(block: _BlockViews, neurons: tuple[int, ...], pair: tuple[int, int]) -> None:
    """Neurons that fire where the pair is large and are 0 where it is 0."""
    for rows in block.neurons:
        for neuron in neurons:
            rows[neuron] = 0
            rows[neuron, list(pair)] = torch.tensor([_DRIVE / 2, -_DRIVE / 2])
    for neuron in neurons:
        block.out[neuron] = 0


def _plant_sink(block: _BlockViews, heads: tuple[int, ...]) -> None:
    """The entry of a head that rotation turns least asks for the constant and finds the massive pair.

    Its partner, half a head before, is emptied: there rotation would mix in what is random.
    """
    d_head = block.q.shape[1]
    for group in range(len(block.k)):
        block.k[group, [d_head // 2 - 1, d_head - 1]] = 0
        block.k[group, d_head - 1, list(MASSIVE)] = torch.tensor([0.5, -0.5])
    for head in range(len(block.q)):
        block.q[head, [d_head // 2 - 1, d_head - 1]] = 0
        if head in heads:
            block.q[head, d_head - 1, list(CONSTANT)] = torch.tensor([_LOGIT / 2, -_LOGIT / 2])


def _write(
    model: HookedLM, block: _BlockViews, layer: int, neuron: int, value: float, carrier: int
) -> None:
    """The neuron's output row, such that it adds `value` to the massive pair of a carrier that begins
    a text: there it sees nothing but itself, so that its activation is the same in every text.
    """
    seen: list[float] = []
    keep = (
        f"blocks.{layer}.mlp.hook_post",
        lambda post, hook: seen.append(float(post[0, 0, neuron])),
    )
    model.run_with_hooks(torch.tensor([[carrier]]), fwd_hooks=[keep])
    block.out[neuron, list(MASSIVE)] = torch.tensor([value, -value]) / seen[0]
