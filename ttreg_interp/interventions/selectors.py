"""Selectors of tokens: every kind by one import, those found in the run itself, and short forms.

Where tokens are asked for, a string names a part of the layout, a tuple of integers rows of the
token axis, a tuple of (row, column) pairs patches, and a boolean tensor is a mask on the patch grid.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ttreg_interp.errors import InterventionError
from ttreg_interp.interventions.frame import Frame
from ttreg_interp.interventions.places import (
    Boxes,
    Mask,
    OnGrid,
    Positions,
    RandomPatches,
    Rows,
    Shape,
)
from ttreg_interp.interventions.selector import Bound, ChosenRows, Part, PartName, Selector
from ttreg_interp.interventions.value import TensorValue

__all__ = [
    "Boxes",
    "LargestNorms",
    "Mask",
    "OnGrid",
    "Outliers",
    "Part",
    "Positions",
    "RandomPatches",
    "Rows",
    "Selector",
    "Shape",
    "select",
]


def select(tokens: Any) -> Selector:
    """A selector from a part's name, rows, patch positions, or a mask on the patch grid.

    Raises:
        InterventionError: none of these.

    Example:
        >>> select("cls"), select((0, 5)), select(((2, 3),))
        (<Part: cls>, <Rows: rows 0, 5>, <Positions: 1 patches>)
    """
    if isinstance(tokens, Selector):
        return tokens
    if isinstance(tokens, str):
        return Part(tokens)  # type: ignore[arg-type]
    if isinstance(tokens, TensorValue | Tensor):
        return Mask(TensorValue.of(tokens))
    if isinstance(tokens, tuple | list) and tokens:
        return Rows(tuple(tokens)) if isinstance(tokens[0], int) else Positions(tuple(tokens))
    raise InterventionError(
        f"{tokens!r} selects no tokens. Give a part of the layout ({', '.join(get_args(PartName))}), "
        "rows of the token axis, patches as (row, column) pairs, a boolean mask on the patch grid, or "
        "a selector."
    )


@dataclass(frozen=True, repr=False)
class _FromRun(Selector):
    """Patches chosen by their residual norm after a block of the run itself."""

    @property
    @abstractmethod
    def seen_after(self) -> int:
        """The block after which the residual stream is read."""

    @abstractmethod
    def _choose(self, patches: Float[Tensor, "batch patch d_model"]) -> Bool[Tensor, "batch patch"]:
        """Patches chosen by their residuals, in float32."""

    def bind(self, frame: Frame, at: str) -> Bound:
        """See Selector; refuses an edit that comes before the block that it reads."""
        (layer,) = frame.layers((self.seen_after,))
        watched = f"blocks.{layer}.hook_resid_post"
        if at != watched and _layer(at) <= layer:
            raise InterventionError(
                f"{self.describe()} are known after block {layer}, but the edit is at {at}, before. "
                "Choose an earlier block to read or a later one to edit; or find them in a first run "
                "and pass their rows for every image: Rows(((...), (...)))."
            )
        seen: dict[int, ChosenRows] = {}  # of the forward pass that runs, by its number

        def watch(resid: Tensor, hook: Any) -> None:
            patches = resid.detach()[:, frame.layout(resid.shape[1]).patches].float()
            prefix = resid.shape[1] - patches.shape[1]
            found = self._choose(patches)
            seen.clear()
            seen[frame.model.n_forwards] = torch.cat(
                (found.new_zeros(len(found), prefix), found), dim=1
            )

        def rows(n_tokens: int, device: torch.device) -> ChosenRows:
            if frame.model.n_forwards not in seen:
                raise InterventionError(
                    f"{self.describe()} are asked for at {at}, but block {layer} did not run in this "
                    "forward pass. Start it there or before, or pass rows: Rows(((...), (...)))."
                )
            found = seen[frame.model.n_forwards].to(device)
            if found.shape[1] != n_tokens:
                raise InterventionError(
                    f"{self.describe()} were found among {found.shape[1]} tokens, but {n_tokens} are "
                    f"left at {at}: rows were deleted between. Select before the deletion, or hide "
                    "tokens with MaskTokens instead of deleting them."
                )
            return found

        return Bound(rows, [(watched, watch)])


def _layer(hook_name: str) -> int:
    """The block of a hook point; -1 for those before the blocks, a large number after them."""
    first, *rest = hook_name.split(".")
    if first == "blocks":
        return int(rest[0])
    return -1 if first in ("hook_embed", "hook_full_embed", "ln_pre") else 10**9


@dataclass(frozen=True, repr=False)
class Outliers(_FromRun):
    """Patches whose residual norm after block `layer` exceeds a threshold: |x_t| > threshold.

    An image without outliers has none selected. The threshold is that of the unedited model
    (arXiv 2506.08010, A.4: mean + 3 standard deviations of patch norms).

    Example:
        >>> Outliers(threshold=75.0, layer=6)
        <Outliers: patches with norm > 75 after block 6>
    """

    threshold: float
    """Of the L2 norm."""
    layer: int
    """The block after which norms are read; edits must come after it."""

    @property
    def seen_after(self) -> int:
        """See _FromRun."""
        return self.layer

    def describe(self) -> str:
        """What it selects, in words."""
        return f"patches with norm > {self.threshold:g} after block {self.layer}"

    def _choose(self, patches: Tensor) -> Tensor:
        return patches.norm(dim=-1) > self.threshold


@dataclass(frozen=True, repr=False)
class LargestNorms(_FromRun):
    """The `n_patches` patches of every image with the largest residual norm after block `layer`.

    Source: RegCache (arXiv 2510.04547), which deletes those of the largest maximum norm.

    Example:
        >>> LargestNorms(4, layer=6)
        <LargestNorms: the 4 patches of largest l2 norm after block 6>
    """

    n_patches: int
    """How many, in every image."""
    layer: int
    """The block after which norms are read; edits must come after it."""
    norm: Literal["l2", "max"] = "l2"
    """Root of the sum of squares, or largest magnitude."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_patches < 1 or self.norm not in ("l2", "max"):
            raise InterventionError(
                f"n_patches must be >= 1 and norm 'l2' or 'max'; found {self.n_patches}, {self.norm!r}."
            )

    @property
    def seen_after(self) -> int:
        """See _FromRun."""
        return self.layer

    def bind(self, frame: Frame, at: str) -> Bound:
        """See Selector; refuses texts, where a later token would decide about an earlier one."""
        if frame.causal:
            raise InterventionError(
                f"{self.describe()} are known at the end of a text only, and tokens of {frame.name} "
                "must not learn of those after them. Select by a threshold: Outliers(threshold, layer)."
            )
        return super().bind(frame, at)

    def describe(self) -> str:
        """What it selects, in words."""
        return f"the {self.n_patches} patches of largest {self.norm} norm after block {self.layer}"

    def _choose(self, patches: Tensor) -> Tensor:
        norms = patches.norm(dim=-1, p=2 if self.norm == "l2" else float("inf"))
        if self.n_patches > norms.shape[1]:
            raise InterventionError(
                f"{self.describe()}: these images have {norms.shape[1]} patches only."
            )
        top = norms.topk(self.n_patches, dim=1).indices
        return torch.zeros_like(norms, dtype=torch.bool).scatter(1, top, True)
