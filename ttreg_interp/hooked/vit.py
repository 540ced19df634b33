"""HookedViT: a real vision transformer under TransformerLens' hook points."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from ttreg_interp.errors import LayoutError, UnsupportedModelError
from ttreg_interp.hooked.blocks import HookedBlock, HookedNorm
from ttreg_interp.hooked.config import HookedViTConfig
from ttreg_interp.hooked.fast_cpu import FastCPU, Precision, kernels_of
from ttreg_interp.hooked.layout import TokenLayout
from ttreg_interp.hooked.parts import Positions, ViTParts
from ttreg_interp.hooked.root import HookedModel

ReturnType = Literal["output", "tokens", "both"]


class HookedViT(HookedModel):
    """A pre-norm vision transformer: one readable forward over the source's own leaf modules.

        x = ln_pre(embed(pixels));  x = block_l(x) for every l;  output = project(pool(ln_final(x)))

    Nothing is copied: parameters, patch embedding, norms and heads are those of `model.source`.
    The forward is the evaluation forward: dropout and stochastic depth are off.

    Attributes:
        source: the wrapped module.
        parts: where its family keeps its parts.
        preprocess: PIL image -> Float[Tensor, "channel height width"], as the model was trained.
        text: text tower (`encode_text`, `tokenize`) of a CLIP-style model, else None.
        fast_cpu: other kernels for its linears; None for torch's own.

    Example:
        >>> import timm, torch
        >>> from ttreg_interp.hooked import HookedViT
        >>> model = HookedViT.wrap(timm.create_model("test_vit"))
        >>> logits, cache = model.run_with_cache(torch.zeros(1, 3, 160, 160))
        >>> cache["blocks.0.attn.hook_pattern"].shape  # [batch, head, query, key]
        torch.Size([1, 2, 101, 101])
    """

    def __init__(self, source: nn.Module, parts: ViTParts, name: str | None = None):
        super().__init__()
        self.parts = parts
        self.preprocess: Callable[[Any], Tensor] | None = None
        self.text: Any = None
        self.fast_cpu: FastCPU | None = None
        self.hook_embed = HookPoint()  # [batch, token, d_model], positions added, before ln_pre
        if parts.ln_pre is not None:
            self.ln_pre = HookedNorm(parts.ln_pre)
        self.hook_full_embed = HookPoint()  # [batch, token, d_model], what enters block 0
        self.blocks = nn.ModuleList(HookedBlock(block) for block in parts.blocks)
        if parts.ln_final is not None:
            self.ln_final = HookedNorm(parts.ln_final)
        self.hook_pooled = HookPoint()  # [batch, d_model], what the projection reads
        self.hook_out = HookPoint()  # [batch, output]
        self.setup()  # before the source joins: TransformerLens names modules by writing on them
        self.source = source
        self.train(source.training)
        self._name = name or type(source).__name__

    @classmethod
    def wrap(cls, module: nn.Module, *, fast_cpu: bool | Precision = False) -> "HookedViT":
        """Hook points for a model in hand.

        Args:
            module: a vision transformer of a supported family, or a model that holds one
                (`CLIP`, `CLIPModel`, a LLaVA-style model): its vision tower is taken.
            fast_cpu: as in `load`.

        Raises:
            UnsupportedModelError: no source file knows the class; names the nearest families. Or
                an intervention is baked into it, which hook points would leave out. Or `fast_cpu`
                is for a model in float32 on a CPU.
        """
        from ttreg_interp.hooked.sources import default_preprocess, parts_of

        source, parts = parts_of(module)
        if (baked := getattr(source, "intervention", None)) is not None:
            raise UnsupportedModelError(
                f"This {type(source).__name__} has {baked} baked in, which hook points would leave "
                "out. Wrap the model that it was baked from, and use model.intervened(...)."
            )
        model = cls(source, parts)
        model.preprocess = default_preprocess(source, parts.image_size)
        model.fast_cpu = kernels_of(model, fast_cpu)
        return model

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        pixels: Float[Tensor, "batch channel height width"] | Float[Tensor, "batch token d_model"],
        return_type: ReturnType = "output",
        stop_at_layer: int | None = None,
        *,
        start_at_layer: int | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> Any:
        """The source's output, or its tokens.

        Args:
            pixels: preprocessed images; with `start_at_layer`, what `stop_at_layer` returned.
            return_type: 'output' (logits or embedding, [batch, output]), 'tokens' (after the
                final norm where it reads tokens, [batch, token, d_model], without test-time
                registers), or 'both' as a pair.
            stop_at_layer: return the residual stream before this block (all rows); negative
                numbers count from the end.
            start_at_layer: go on from the residual stream before this block (all rows); nothing
                before it runs, hooks included.
            image_size: height and width of the images that a residual stream came from, where
                not the model's own.

        Raises:
            LayoutError: an image size that the model does not take.
        """
        self._begin_forward()
        shape = self._pixels_shape(pixels, start_at_layer, image_size)
        layout = self.layout(shape)
        if start_at_layer is None:
            x, positions = self._embed(pixels)
        else:
            x, positions = pixels, self._positions(pixels, shape)
        with nullcontext() if self.fast_cpu is None else self.fast_cpu.running(x):
            for block in self.blocks[self._span(start_at_layer, stop_at_layer)]:
                x = block(x, positions)
        if stop_at_layer is not None:
            return x
        return self._read(x, layout.of_length(x.shape[1]), return_type)

    def _embed(self, pixels: Tensor) -> tuple[Tensor, Positions]:
        x, positions = self.parts.embed(pixels)
        x = self.hook_embed(x)
        return self.hook_full_embed(x if self.parts.ln_pre is None else self.ln_pre(x)), positions

    def _pixels_shape(
        self, x: Tensor, start_at_layer: int | None, image_size: tuple[int, int] | None
    ) -> tuple[int, ...]:
        """Shape of the images that `x` is, or came from."""
        if start_at_layer is None:
            return x.shape
        return (len(x), self.parts.n_channels, *(image_size or self.image_size))

    def _positions(self, residual: Tensor, shape: tuple[int, ...]) -> Positions:
        """Rotary tables depend on the size of the images alone: one blank image tells them."""
        if self.blocks[0].attn.parts.rotate is None:
            return None
        return self.parts.embed(residual.new_zeros(1, *shape[1:]))[1]

    def _read(self, x: Tensor, layout: TokenLayout, return_type: ReturnType) -> Any:
        """Final norm, pooling and head; test-time registers are seen by none of the readers."""
        norm = self.ln_final if self.parts.ln_final is not None else nn.Identity()
        tokens = layout.drop_registers(x if self.parts.norm_after_pool else norm(x))
        if return_type == "tokens":
            return tokens
        pooled = self.parts.pool(tokens)
        pooled = self.hook_pooled(norm(pooled) if self.parts.norm_after_pool else pooled)
        output = self.hook_out(self.parts.project(pooled))
        return output if return_type == "output" else (output, tokens)

    @contextmanager
    def torch_kernels(self) -> Iterator[Self]:
        """Torch's own kernels inside, also in a model that has others."""
        others, self.fast_cpu = self.fast_cpu, None
        try:
            yield self
        finally:
            self.fast_cpu = others

    # ------------------------------------------------------------------ shape

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that the model was made for."""
        return self.parts.image_size

    def layout(self, pixels_shape: torch.Size | tuple[int, ...] | None = None) -> TokenLayout:
        """The layout of the token axis for images of this shape (default: the model's own size).

        Args:
            pixels_shape: `(..., channel, height, width)` in pixels.

        Raises:
            LayoutError: not a multiple of the patch, another channel count, or a size that the
                model's position embedding does not take.
        """
        height, width = self._checked_size(pixels_shape) if pixels_shape else self.image_size
        patch_height, patch_width = self.parts.patch_size
        return TokenLayout(
            n_cls=self.parts.n_cls,
            n_trained_registers=self.parts.n_trained_registers,
            height=height // patch_height,
            width=width // patch_width,
        )

    def _checked_size(self, pixels_shape: torch.Size | tuple[int, ...]) -> tuple[int, int]:
        *_, channels, height, width = (0, 0, *pixels_shape)
        found = f"{self._name}: images of shape {tuple(pixels_shape)}"
        if len(pixels_shape) != 4 or channels != self.parts.n_channels:
            raise LayoutError(
                f"{found}; expected [batch, {self.parts.n_channels}, height, width]. "
                "Pass model.preprocess(image)[None]."
            )
        if (height, width) == self.image_size:  # a stride may leave out the last pixels of that
            return height, width
        patch_height, patch_width = self.parts.patch_size
        if height % patch_height or width % patch_width or min(height, width) == 0:
            raise LayoutError(
                f"{found}; height and width must be multiples of the patch, {patch_height} x "
                f"{patch_width} pixels. Resize or crop, e.g. to {self.image_size}."
            )
        if not self.parts.resizable:
            raise LayoutError(
                f"{found}; this model takes {self.image_size} only. Load it for another size: "
                f"tt.load(spec, image_size=({height}, {width}))."
            )
        return height, width

    @property
    def cfg(self) -> HookedViTConfig:
        """What TransformerLens' tools read; device and dtype are those of the moment."""
        final = self.parts.ln_final
        return HookedViTConfig(
            **self._blocks_config(),
            n_ctx=self.layout().n_tokens,
            d_vocab=-1 if self.parts.unembed is None else self.parts.unembed()[0].shape[0],
            final_rms=final is not None and not self.ln_final.centred,
            fast_cpu=None if self.fast_cpu is None else self.fast_cpu.precision,
        )

    def _layout_of_run(self, inputs: Any, n_tokens: int | None, **kwargs: Any) -> TokenLayout:
        shape = self._pixels_shape(inputs, kwargs.get("start_at_layer"), kwargs.get("image_size"))
        layout = self.layout(shape)
        return layout if n_tokens is None else layout.of_length(n_tokens)

    # ------------------------------------------------------------------ copies

    def __deepcopy__(self, memo: dict) -> "HookedViT":
        twin = type(self).wrap(copy.deepcopy(self.source, memo))
        twin.parts = replace(twin.parts, image_size=self.image_size)
        twin.preprocess, twin.text, twin.spec, twin._name, twin.fast_cpu = (
            self.preprocess,
            self.text,
            self.spec,
            self._name,
            self.fast_cpu,
        )
        return twin

    def to_tokens(self, *args: Any, **kwargs: Any) -> Tensor:
        """Refused: images have no tokenizer.

        Raises:
            UnsupportedModelError: always.
        """
        raise UnsupportedModelError(
            f"{self._name} is a vision model: pass pixels (model.preprocess(image)[None]), not text."
        )
