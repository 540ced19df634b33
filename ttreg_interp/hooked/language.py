"""HookedLM: a causal language model under the hook points of HookedViT."""

import copy
from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from ttreg_interp.errors import LayoutError, UnsupportedModelError
from ttreg_interp.hooked.blocks import HookedBlock, HookedNorm, capped
from ttreg_interp.hooked.config import HookedLMConfig
from ttreg_interp.hooked.language_parts import Ids, LMParts
from ttreg_interp.hooked.root import HookedModel
from ttreg_interp.hooked.text_layout import TextLayout

ReturnType = Literal["output", "tokens", "both"]


@runtime_checkable
class Tokenizer(Protocol):
    """What HookedLM asks of a tokenizer: transformers' do, and `sources.llama2c.Llama2cTokenizer`."""

    bos_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids, without BOS if `add_special_tokens` is False."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids."""
        ...


class HookedLM(HookedModel):
    """A causal language model: one readable forward over the source's own leaf modules.

        x = embed(ids);  x = block_l(x) for every l;  logits = head(ln_final(x))

    (capped, in families that do so).
    Hook names, layout and interventions are those of HookedViT, and all hook points are causal,
    `hook_resid_mid` and the scores (-inf where masked) included. TransformerLens' TransformerBridge
    agrees at the hook points that both have, but cannot carry these interventions: its attention
    fails on a key that is no token, and its `hook_resid_mid` is what the MLP's norm reads, not the
    stream (the tests show both).

    Edits must not look ahead: a maximum or mean over the tokens of a text tells earlier tokens of
    later ones. Interventions that would are refused.

    Attributes:
        source: the wrapped module.
        parts: where its family keeps its parts.
        tokenizer: its tokenizer, or None.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> config = GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2)
        >>> model = HookedLM.wrap(GPT2LMHeadModel(config))
        >>> logits, cache = model.run_with_cache(torch.tensor([[1, 2, 3]]))
        >>> logits.shape, cache["blocks.0.attn.hook_pattern"].shape
        (torch.Size([1, 3, 50]), torch.Size([1, 2, 3, 3]))
    """

    def __init__(self, source: nn.Module, parts: LMParts, name: str | None = None):
        super().__init__()
        self.parts = parts
        self.tokenizer: Tokenizer | None = None
        self.hook_embed = HookPoint()  # [batch, token, d_model], learned positions added
        self.hook_full_embed = HookPoint()  # [batch, token, d_model], what enters block 0
        self.blocks = nn.ModuleList(HookedBlock(block) for block in parts.blocks)
        self.ln_final = HookedNorm(parts.ln_final)
        self.hook_out = HookPoint()  # [batch, token, output], logits of the given tokens
        self.setup()  # before the source joins: TransformerLens names modules by writing on them
        self.source = source
        self.train(source.training)
        self._name = name or type(source).__name__

    @classmethod
    def wrap(cls, module: nn.Module, tokenizer: Tokenizer | None = None) -> "HookedLM":
        """Hook points for a model in hand.

        Args:
            module: a causal language model of a supported family.
            tokenizer: its tokenizer; without one the model takes token ids only.

        Raises:
            UnsupportedModelError: another class; names the families.
        """
        from ttreg_interp.hooked.sources.causal_lm import parts

        model = cls(module, parts(module))
        model.tokenizer = tokenizer
        return model

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        inputs: Ids | Float[Tensor, "batch token d_model"] | str | Sequence[str],
        return_type: ReturnType = "output",
        stop_at_layer: int | None = None,
        *,
        start_at_layer: int | None = None,
    ) -> Any:
        """The source's logits, or its tokens.

        Args:
            inputs: token ids [batch, token], a text, or texts of equally many tokens; with
                `start_at_layer`, what `stop_at_layer` returned.
            return_type: 'output' (logits [batch, token, output]), 'tokens' (after the final norm,
                [batch, token, d_model]), or 'both' as a pair; without test-time registers.
            stop_at_layer: return the residual stream before this block (all rows); negative
                numbers count from the end.
            start_at_layer: go on from the residual stream before this block (all rows); nothing
                before it runs, hooks included.

        Raises:
            LayoutError: more tokens than the model takes.
        """
        self._begin_forward()
        if start_at_layer is None:
            ids = self._ids(inputs)
            n_given = self.layout(ids.shape).n_given
            x = self.hook_full_embed(self.hook_embed(self.parts.embed(ids)))
        else:
            assert isinstance(inputs, Tensor)
            x, n_given = inputs, inputs.shape[1] - self.n_added_tokens
        positions = self.parts.positions(x, n_given)
        span = self._span(start_at_layer, stop_at_layer)
        for block, of_block in zip(self.blocks[span], positions[span], strict=True):
            x = block(x, of_block)
        return x if stop_at_layer is not None else self._read(x, n_given, return_type)

    def _read(self, x: Tensor, n_given: int, return_type: ReturnType) -> Any:
        """Final norm and head; test-time registers are not read."""
        tokens = TextLayout(n_given).of_length(x.shape[1]).drop_registers(self.ln_final(x))
        if return_type == "tokens":
            return tokens
        output = self.hook_out(capped(self.parts.head(tokens), self.parts.softcap))
        return output if return_type == "output" else (output, tokens)

    def _ids(self, inputs: Any) -> Tensor:
        return inputs if isinstance(inputs, Tensor) else self.to_tokens(inputs)

    # ------------------------------------------------------------------ texts

    def to_tokens(self, text: str | Sequence[str], prepend_bos: bool = True) -> Ids:
        """Token ids of a text, or of texts of equally many tokens, behind BOS if there is one.

        Raises:
            UnsupportedModelError: the model has no tokenizer.
            LayoutError: texts of different lengths: there is no padding, since a padded token is a
                token that others may attend to.
        """
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self.encode(one, prepend_bos) for one in texts]
        lengths = sorted({len(row) for row in rows})
        if len(lengths) != 1:
            raise LayoutError(
                f"Texts of {lengths[0] if lengths else 0} to {lengths[-1] if lengths else 0} tokens "
                "do not stack. Run them one by one, or cut them to one length: "
                "metrics.language.text_tokens(model, texts, length)."
            )
        return torch.tensor(rows, device=self.cfg.device)

    def encode(self, text: str, prepend_bos: bool = True) -> list[int]:
        """Token ids of one text, behind BOS if there is one."""
        if self.tokenizer is None:
            raise UnsupportedModelError(
                f"{self.cfg.model_name} has no tokenizer, so it takes token ids only: pass a tensor "
                "[batch, token], or HookedLM.wrap(module, tokenizer)."
            )
        ids = list(self.tokenizer.encode(text, add_special_tokens=False))
        bos = self.tokenizer.bos_token_id
        return [bos, *ids] if prepend_bos and bos is not None else ids

    @property
    def preprocess(self) -> Any:
        """Refused: what reads images asks for it.

        Raises:
            UnsupportedModelError: always.
        """
        raise self._reads_texts()

    @property
    def image_size(self) -> Any:
        """Refused, as `preprocess` is.

        Raises:
            UnsupportedModelError: always.
        """
        raise self._reads_texts()

    def _reads_texts(self) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{self.cfg.model_name} reads texts, not images. For its register neurons use "
            "tt.find_sink_neurons(model, texts), or `ttreg language MODEL --texts FILE`."
        )

    def to_single_token(self, string: str) -> int:
        """The token that a string is.

        Raises:
            LayoutError: it is several tokens.
        """
        ids = self.encode(string, prepend_bos=False)
        if len(ids) != 1:
            raise LayoutError(f"{string!r} is {len(ids)} tokens of {self.cfg.model_name}, not one.")
        return ids[0]

    # ------------------------------------------------------------------ shape

    def layout(self, ids_shape: torch.Size | tuple[int, ...] | None = None) -> TextLayout:
        """The layout of the token axis for ids of this shape (default: the longest text).

        Raises:
            LayoutError: not [batch, token], or more tokens than the model takes.
        """
        shape = (1, self.parts.n_ctx) if ids_shape is None else tuple(ids_shape)
        if len(shape) != 2 or not 1 <= shape[1] <= self.parts.n_ctx:
            raise LayoutError(
                f"{self._name}: token ids of shape {shape}; expected [batch, token] with 1 to "
                f"{self.parts.n_ctx} tokens. Cut longer texts."
            )
        return TextLayout(shape[1])

    def _layout_of_run(self, inputs: Any, n_tokens: int | None, **kwargs: Any) -> TextLayout:
        if kwargs.get("start_at_layer") is not None:
            layout = TextLayout(inputs.shape[1] - self.n_added_tokens)
        else:
            layout = self.layout(self._ids(inputs).shape)
        return layout if n_tokens is None else layout.of_length(n_tokens)

    @property
    def cfg(self) -> HookedLMConfig:
        """What TransformerLens' tools read; device and dtype are those of the moment."""
        return HookedLMConfig(
            **self._blocks_config(),
            n_ctx=self.parts.n_ctx,
            d_vocab=self.parts.head.weight.shape[0],
            final_rms=not self.ln_final.centred,
            parallel_attn_mlp=self.blocks[0].parallel,
        )

    def __deepcopy__(self, memo: dict) -> "HookedLM":
        twin = type(self).wrap(copy.deepcopy(self.source, memo), self.tokenizer)
        twin.spec, twin._name = self.spec, self._name
        return twin
