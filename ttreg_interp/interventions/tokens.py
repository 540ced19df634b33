"""Interventions on tokens: hidden from attention, or deleted."""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ttreg_interp.errors import InterventionError
from ttreg_interp.hooked.intervened import NamedHook
from ttreg_interp.interventions.base import Intervention, flattened
from ttreg_interp.interventions.frame import Frame
from ttreg_interp.interventions.masks import AttentionMask, hide_keys
from ttreg_interp.interventions.selector import Bound, Part, Selector, Tokens
from ttreg_interp.interventions.selectors import select
from ttreg_interp.interventions.value import check_choice

Residual = Float[Tensor, "batch token d_model"]


@dataclass(frozen=True, repr=False)
class MaskTokens(Intervention):
    """Hides tokens: no token attends to them in blocks >= from_layer.

    The rows stay and are computed; for every other token it is as if they were gone. A reader that
    pools over patches still reads them.

    Raises:
        InterventionError: a layer or tokens that the model does not have; a query that is left without
            any key.

    Example:
        >>> MaskTokens(((0, 0), (0, 1)), from_layer=6)
        <MaskTokens: 2 patches hidden from block 6 on>
    """

    tokens: Tokens
    """Which: a selector, a part's name, rows, positions or a mask; also per image."""
    from_layer: int = 0
    """The first block that does not see them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tokens", select(self.tokens))

    def describe(self) -> str:
        """What it does, in words."""
        return f"{self.tokens.describe()} hidden from block {self.from_layer} on"

    @property
    def _hidden(self) -> Selector:
        return self.tokens

    def _hooks(self, frame: Frame) -> list[NamedHook]:
        frame.layers((self.from_layer,))
        names = [
            f"blocks.{layer}.attn.hook_mask" for layer in range(self.from_layer, frame.n_layers)
        ]
        bound = self._hidden.bind(frame, names[0])
        hide = partial(_hide, bound, frame.causal)
        return [*bound.hooks, *((name, hide) for name in names)]


def _hide(bound: Bound, causal: bool, mask: Tensor, hook: Any) -> AttentionMask:
    return hide_keys(mask, bound.rows(mask.shape[2], mask.device), causal)


@dataclass(frozen=True, repr=False)
class KeepTokens(MaskTokens):
    """Hides all patches but the chosen ones; [CLS] and registers stay.

    Example:
        >>> KeepTokens(((0, 0), (0, 1)))
        <KeepTokens: only 2 patches kept from block 0 on>
    """

    def describe(self) -> str:
        """What it does, in words."""
        return f"only {self.tokens.describe()} kept from block {self.from_layer} on"

    @property
    def _hidden(self) -> Selector:
        return Part("patches") & ~self.tokens


@dataclass(frozen=True, repr=False)
class DeleteTokens(Intervention):
    """Deletes patches before a block, for good: the blocks from there on compute fewer rows.

    After the last block the remaining rows go back to their places, and the deleted ones are filled,
    so that readers find the grid that they expect. The choice is made for every image by itself, with
    the same number in each. For [CLS] it equals MaskTokens; that one also takes numbers that differ,
    rotary models, and edits of patches by position in later blocks.

    Raises:
        InterventionError: [CLS] or registers among the tokens; other numbers of them in the images of a
            batch; a rotary model, whose positions would shift; a second DeleteTokens.

    Source: RegCache (arXiv 2510.04547), algorithm step 5.

    Example:
        >>> from ttreg_interp.interventions import LargestNorms
        >>> DeleteTokens(LargestNorms(4, layer=5), before_layer=6)
        <DeleteTokens: the 4 patches of largest l2 norm after block 5 deleted before block 6>
    """

    tokens: Tokens
    """Which patches: a selector, positions or a mask; also per image."""
    before_layer: int
    """The first block that has them no more."""
    fill: Literal["neighbours", "mean", "last"] = "neighbours"
    """What readers find in the rows: the mean of the remaining patches among the 8 around (of all, if
    there is none), the mean of all remaining patches, or the row as it was when deleted."""
    image_size: tuple[int, int] | None = None
    """Height and width of the images in pixels, where not the model's own ('neighbours' only)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "tokens", select(self.tokens))
        check_choice("fill", self.fill, Literal["neighbours", "mean", "last"])

    def describe(self) -> str:
        """What it does, in words."""
        return f"{self.tokens.describe()} deleted before block {self.before_layer}"

    def check_compatible(self, others: Items[Any]) -> None:
        """Rows are deleted once.

        Raises:
            InterventionError: twice.
        """
        super().check_compatible(others)
        if any(isinstance(other, DeleteTokens) for other in flattened(others)):
            raise InterventionError(
                "Two DeleteTokens: the second would count rows that the first has removed. Delete all "
                "at once (selectors combine with |), or hide some with MaskTokens."
            )

    def _hooks(self, frame: Frame) -> list[NamedHook]:
        frame.layers((self.before_layer,))
        frame.check_has_grid(self.describe())
        if _rotates(frame.model):
            raise InterventionError(
                f"{frame.name} rotates queries and keys by patch position, which deleted rows would "
                "shift. Use MaskTokens: other tokens cannot tell the difference."
            )
        first = f"blocks.{self.before_layer}.hook_resid_pre"
        bound = self.tokens.bind(frame, first)
        state: dict[str, Tensor] = {}
        return [
            *bound.hooks,
            (first, partial(self._delete, frame, bound, state)),
            (f"blocks.{frame.n_layers - 1}.hook_resid_post", partial(self._restore, frame, state)),
        ]

    def _delete(
        self, frame: Frame, bound: Bound, state: dict[str, Tensor], resid: Tensor, hook: Any
    ) -> Residual:
        n_tokens = resid.shape[1]
        rows = bound.rows(n_tokens, resid.device).expand(len(resid), -1)
        _check_deletable(self, rows, frame.layout(n_tokens).patches.start)
        kept = rows.logical_not().nonzero()[:, 1].view(len(resid), -1)
        state.update(deleted=rows, kept=kept, last=resid)
        return resid.gather(1, _over(kept, resid))

    def _restore(
        self, frame: Frame, state: dict[str, Tensor], resid: Tensor, hook: Any
    ) -> Residual:
        deleted, kept = state["deleted"], state["kept"]
        whole = state["last"].new_zeros(*deleted.shape, resid.shape[2])
        whole = whole.scatter(1, _over(kept, resid), resid)
        patches = frame.layout(deleted.shape[1]).patches
        fill = self._fill(frame, whole[:, patches], deleted[:, patches], state["last"][:, patches])
        filled = torch.where(deleted[:, patches, None], fill, whole[:, patches])
        return torch.cat((whole[:, : patches.start], filled), dim=1)

    def _fill(
        self, frame: Frame, patches: Tensor, deleted: Bool[Tensor, "batch patch"], last: Tensor
    ) -> Float[Tensor, "batch filled d_model"]:
        if self.fill == "last":
            return last
        mean = patches.sum(1, keepdim=True) / (~deleted).sum(1)[:, None, None]
        if self.fill == "mean":
            return mean
        grid = frame.grid(patches.shape[1], self.image_size)
        sums, counts = (
            _around(x.unflatten(1, (grid.height, grid.width)))
            for x in (patches, (~deleted)[..., None].to(patches))
        )
        return torch.where(counts > 0.5, sums / counts.clamp_min(1), mean)


def _over(rows: Tensor, resid: Tensor) -> Tensor:
    """Row indices [batch, row] as gather and scatter want them."""
    return rows[:, :, None].expand(-1, -1, resid.shape[2])


def _around(grid: Float[Tensor, "batch height width d"]) -> Float[Tensor, "batch patch d"]:
    """Sum over the 3 x 3 places around each."""
    sums = avg_pool2d(grid.movedim(-1, 1), 3, stride=1, padding=1, divisor_override=1)
    return sums.flatten(2).transpose(1, 2)


def _rotates(model: Any) -> bool:
    pixels = torch.zeros(
        1, model.parts.n_channels, *model.image_size, dtype=model.cfg.dtype, device=model.cfg.device
    )
    return model.parts.embed(pixels)[1] is not None


def _check_deletable(
    deletion: DeleteTokens, rows: Bool[Tensor, "batch token"], n_before_patches: int
) -> None:
    counts = rows.sum(dim=1)
    if bool(rows[:, :n_before_patches].any()):
        raise InterventionError(
            f"{deletion.describe()}: [CLS] and registers are among them, which readers need. Select "
            "patches, e.g. with Part('patches') & ..., or hide the others with MaskTokens."
        )
    if int(counts.min()) != int(counts.max()) or int(counts.min()) == rows.shape[1]:
        raise InterventionError(
            f"{deletion.describe()}: {counts.tolist()} rows of {rows.shape[1]} in the images of this "
            "batch. Delete the same number in each (LargestNorms), or hide them with MaskTokens."
        )
