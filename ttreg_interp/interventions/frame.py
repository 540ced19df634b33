"""What the hooks of an intervention know about the model and the token axis of the run."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from ttreg_interp.errors import InterventionError
from ttreg_interp.hooked.layout import TokenLayout
from ttreg_interp.hooked.text_layout import Layout, TextLayout


@runtime_checkable
class HasLayout(Protocol):
    """A hooked model that tells which row of its token axis is which."""

    @property
    def n_added_tokens(self) -> int:
        """Rows that the interventions it runs under add."""
        ...

    def layout(self) -> Layout:
        """The layout at the model's own image size, or of its longest text."""
        ...


@dataclass(frozen=True)
class PatchGrid:
    """The patches of an image."""

    height: int
    """Rows of the grid."""
    width: int
    """Columns of the grid."""
    patch_height: int
    """Pixels."""
    patch_width: int
    """Pixels."""


@dataclass(frozen=True)
class Frame:
    """A model, and the rows that interventions add to its token axis.

    Rows are counted when a hook runs, not when it is made, because the image size is known only
    then: patches are the rows that are neither the model's prefix nor added.
    """

    model: Any
    """The hooked model."""
    n_before: int
    """Added rows that stand before those of this intervention."""
    n_added: int
    """Rows that its whole composition adds, those before it included."""
    entering: bool = False
    """Whether it is for a hook point where no more rows than `n_added` have entered yet."""

    @classmethod
    def of(cls, model: Any, n_added_tokens: int) -> "Frame":
        """The frame of an intervention that adds `n_added_tokens` rows to what `model` has."""
        before = model.n_added_tokens if isinstance(model, HasLayout) else 0
        return cls(model, before, before + n_added_tokens)

    def at(self, hook: str) -> "Frame":
        """This frame at a hook point: rows enter at `hook_full_embed`, one intervention after another."""
        if hook == "hook_full_embed":
            return replace(self, n_added=self.n_before, entering=True)
        before = hook.startswith(("hook_embed", "hook_pos_embed", "ln_pre"))
        return replace(self, n_added=0, entering=True) if before else self

    @property
    def name(self) -> str:
        """The model, as errors call it."""
        return str(self.model.cfg.model_name)

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return int(self.model.cfg.n_layers)

    @property
    def model_layout(self) -> Layout:
        """The layout of the plain model at its own image size, or of its longest text.

        Raises:
            InterventionError: the model has none.
        """
        if not isinstance(self.model, HasLayout):
            raise InterventionError(
                f"{self.name} has no token layout, so nothing can be said of its [CLS], patches and "
                "registers. Name rows of its token axis with Rows((0, 1, ...)) instead."
            )
        return self.model.layout()

    @property
    def causal(self) -> bool:
        """Whether tokens see only what stands before them."""
        return isinstance(self.model, HasLayout) and self.model.layout().causal

    @property
    def first_row(self) -> int:
        """Where the rows that this intervention adds stand."""
        return self.model_layout.n_prefix + self.n_before

    def layout(self, n_tokens: int) -> Layout:
        """The layout of a run with `n_tokens` rows; its grid is one row if the image size is not the
        model's own.

        Raises:
            InterventionError: fewer rows than prefix and added rows.
        """
        own = self.model_layout
        added = self.n_added if self.entering else max(self.n_added, self.model.n_added_tokens)
        n_patches = n_tokens - own.n_prefix - added
        if n_patches < 1:
            raise InterventionError(
                f"{n_tokens} token rows of {self.name} cannot hold {own.n_prefix} rows of [CLS] and "
                f"trained registers, {added} added rows and patches or text. Was an intervention that "
                "adds rows left out, or are rows deleted twice?"
            )
        return own.with_counts(n_patches, added)

    def check_has_grid(self, described: str) -> None:
        """Refuse what needs places of an image on a model of texts.

        Raises:
            InterventionError: the model reads texts.
        """
        if isinstance(self.model, HasLayout) and isinstance(self.model_layout, TextLayout):
            raise InterventionError(
                f"{described}: {self.name} reads texts, which have no patch grid. Select 'bos', 'text' "
                "or Rows((0, 1, ...)), and hide tokens with MaskTokens."
            )

    def grid(self, n_patches: int, image_size: tuple[int, int] | None = None) -> "PatchGrid":
        """The patch grid of a run.

        Args:
            n_patches: of the run.
            image_size: height and width of the images in pixels; None: the model's own.

        Raises:
            InterventionError: a grid of another number of patches.
        """
        layout = self.model_layout
        assert isinstance(layout, TokenLayout)  # check_has_grid has seen to it
        if image_size is not None:
            layout = self.model.layout((1, self.model.parts.n_channels, *image_size))
        if layout.n_patches != n_patches:
            raise InterventionError(
                f"Images of this run have {n_patches} patches, but images of "
                f"{image_size or self.model.image_size} pixels have {layout.n_patches}, "
                f"{layout.height} x {layout.width}. Name the size of the images in pixels: "
                "image_size=(height, width); a mask in pixels must have their size."
            )
        return PatchGrid(layout.height, layout.width, *self.model.parts.patch_size)

    def layers(self, layers: Iterable[int] | None) -> tuple[int, ...]:
        """`layers`, checked; all of the model if None.

        Raises:
            InterventionError: a layer that the model does not have.
        """
        chosen = tuple(range(self.n_layers) if layers is None else layers)
        for layer in chosen:
            if not 0 <= layer < self.n_layers:
                raise InterventionError(
                    f"Layer {layer} is not in {self.name}: it has layers 0 to {self.n_layers - 1}."
                )
        return chosen

    def head_mask(self, heads: Iterable[int]) -> Bool[Tensor, " head"]:
        """`heads` of a layer as a mask.

        Raises:
            InterventionError: a head that the model does not have.
        """
        n_heads = int(self.model.cfg.n_heads)
        mask = torch.zeros(n_heads, dtype=torch.bool)
        for head in heads:
            if not 0 <= head < n_heads:
                raise InterventionError(
                    f"Head {head} is not in {self.name}: its layers have heads 0 to {n_heads - 1}."
                )
            mask[head] = True
        return mask
