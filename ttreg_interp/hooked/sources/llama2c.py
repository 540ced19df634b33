"""llama2.c: a Llama in one file of float32, and the tokenizer in another."""

import heapq
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ttreg_interp.errors import ArtifactError

_HEADER = struct.Struct("<7i")
_THETA = 10000.0


def load(path: Path) -> tuple[Any, "Llama2cTokenizer | None"]:
    """The model as transformers' LlamaForCausalLM, and the tokenizer (`tok*.bin`) beside the file.

    llama2.c turns neighbouring pairs of a head, transformers pairs that are half a head apart: rows
    of W_Q and W_K are put in that order.

    Args:
        path: a version-0 checkpoint (`export.py --version 0`).

    Raises:
        ArtifactError: the file is no such checkpoint.

    Source: github karpathy/llama2.c, `run.c` (memory_map_weights).
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    raw = path.read_bytes()
    header = _HEADER.unpack(raw[: _HEADER.size]) if len(raw) >= _HEADER.size else (0,) * 7
    d_model, d_mlp, n_layers, n_heads, n_groups, vocabulary, n_ctx = header
    if min(d_model, d_mlp, n_layers, n_heads, n_groups, n_ctx) < 1 or d_model % n_heads:
        raise ArtifactError(
            f"{path} does not begin as a llama2.c checkpoint of version 0: found sizes {header}. "
            "Export it with llama2.c's `export.py --version 0`."
        )
    config = LlamaConfig(
        vocab_size=abs(vocabulary),
        hidden_size=d_model,
        intermediate_size=d_mlp,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_groups,
        max_position_embeddings=n_ctx,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": _THETA},
        tie_word_embeddings=vocabulary > 0,  # a negative number says that the head is its own
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(_Reader(raw, path, config).state(vocabulary < 0))
    tokenizers = sorted(path.parent.glob("tok*.bin"))
    return model.eval(), Llama2cTokenizer.read(tokenizers[0]) if tokenizers else None


class _Reader:
    """Tensors of the file, in its order."""

    def __init__(self, raw: bytes, path: Path, config: Any):
        self.values = torch.frombuffer(bytearray(raw[_HEADER.size :]), dtype=torch.float32)
        self.path = path
        self.config = config
        self.at = 0

    def take(self, *shape: int) -> Tensor:
        size = torch.Size(shape).numel()
        part = self.values[self.at : self.at + size]
        if len(part) < size:
            raise ArtifactError(
                f"{self.path} holds {len(self.values)} values and ends within its weights; it was cut "
                "short. Get it again."
            )
        self.at += size
        return part.view(shape).clone()

    def state(self, own_head: bool) -> dict[str, Tensor]:
        config = self.config
        d, n, d_mlp = config.hidden_size, config.num_hidden_layers, config.intermediate_size
        d_head = d // config.num_attention_heads
        kv = d_head * config.num_key_value_heads
        state = {"model.embed_tokens.weight": self.take(config.vocab_size, d)}
        stacks = (
            ("input_layernorm", (d,)),
            ("self_attn.q_proj", (d, d)),
            ("self_attn.k_proj", (kv, d)),
            ("self_attn.v_proj", (kv, d)),
            ("self_attn.o_proj", (d, d)),
            ("post_attention_layernorm", (d,)),
            ("mlp.gate_proj", (d_mlp, d)),
            ("mlp.down_proj", (d, d_mlp)),
            ("mlp.up_proj", (d_mlp, d)),
        )
        for name, shape in stacks:
            for layer, weight in enumerate(self.take(n, *shape)):
                turned = name.endswith(("q_proj", "k_proj"))
                weight = _halves(weight, d_head) if turned else weight
                state[f"model.layers.{layer}.{name}.weight"] = weight
        state["model.norm.weight"] = self.take(d)
        self.take(2, config.max_position_embeddings, d_head // 2)  # tables of angles, unused
        head = self.take(config.vocab_size, d) if own_head else state["model.embed_tokens.weight"]
        if self.at != len(self.values):
            raise ArtifactError(
                f"{self.path} holds {len(self.values)} values where its sizes ask for {self.at}; it is "
                "no llama2.c checkpoint of version 0."
            )
        return {**state, "lm_head.weight": head}


def _halves(weight: Tensor, d_head: int) -> Tensor:
    """Rows of every head reordered from (0, 1), (2, 3), ... to pairs that are half a head apart."""
    return weight.unflatten(0, (-1, d_head // 2, 2)).transpose(1, 2).flatten(0, 2)


@dataclass(frozen=True)
class Llama2cTokenizer:
    """Byte-pair encoding with the pieces and scores of a llama2.c `tokenizer.bin`.

    Source: github karpathy/llama2.c, `run.c` (encode, decode).
    """

    pieces: tuple[bytes, ...]
    """The vocabulary."""
    scores: tuple[float, ...]
    """Of two possible merges, that with the higher score is done."""
    bos_token_id: int = 1
    """What every text begins with."""

    @classmethod
    def read(cls, path: Path) -> "Llama2cTokenizer":
        """A tokenizer file.

        Raises:
            ArtifactError: it is cut short.
        """
        raw, at = path.read_bytes(), 4  # the longest piece comes first
        pieces, scores = [], []
        while at < len(raw):
            score, length = struct.unpack_from("<fi", raw, at)
            piece = raw[at + 8 : at + 8 + length]
            if len(piece) < length:
                raise ArtifactError(f"{path} ends within a piece; it was cut short. Get it again.")
            pieces.append(piece)
            scores.append(score)
            at += 8 + length
        return cls(tuple(pieces), tuple(scores))

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {piece: i for i, piece in enumerate(self.pieces)}

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids; with special tokens, BOS first."""
        start = [self.bos_token_id] if add_special_tokens else []
        return [*start, *(self._merged(self._characters(f" {text}")) if text else [])]

    def _characters(self, text: str) -> list[int]:
        """Characters as tokens; those that the vocabulary lacks, byte by byte (3 tokens precede)."""
        tokens: list[int] = []
        for character in text:
            raw = character.encode()
            known = self._ids.get(raw)
            tokens += [byte + 3 for byte in raw] if known is None else [known]
        return tokens

    def _merged(self, tokens: list[int]) -> list[int]:
        """The pair of best score merged, again and again; the leftmost of equals."""
        following = [*range(1, len(tokens)), -1]
        before = list(range(-1, len(tokens) - 1))
        alive = [True] * len(tokens)
        heap: list[tuple[float, int, int, int, int]] = []

        def offer(i: int) -> None:
            j = following[i] if i >= 0 else -1
            if j >= 0:
                merged = self._ids.get(self.pieces[tokens[i]] + self.pieces[tokens[j]])
                if merged is not None:
                    heapq.heappush(heap, (-self.scores[merged], i, tokens[i], tokens[j], merged))

        for i in range(len(tokens)):
            offer(i)
        while heap:
            _, i, left, right, merged = heapq.heappop(heap)
            j = following[i]
            if not alive[i] or j < 0 or (tokens[i], tokens[j]) != (left, right):
                continue
            tokens[i], alive[j], following[i] = merged, False, following[j]
            if following[i] >= 0:
                before[following[i]] = i
            offer(i)
            offer(before[i])
        return [token for token, here in zip(tokens, alive, strict=True) if here]

    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids, without BOS and EOS, and without the space that `encode` added."""
        raw = b"".join(self._bytes(token) for token in token_ids if token not in (1, 2))
        return raw.decode(errors="replace").removeprefix(" ")

    def _bytes(self, token: int) -> bytes:
        return bytes([token - 3]) if 3 <= token < 259 else self.pieces[token]
