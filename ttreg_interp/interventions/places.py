"""Selectors of places: rows of the token axis, and patches by where they are in the image.

Targets may be given for every image of the batch instead of once for all: a tuple of tuples, or a
mask with an `image` axis.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from ttreg_interp.errors import InterventionError
from ttreg_interp.hooked.layout import TokenLayout
from ttreg_interp.interventions.frame import Frame, PatchGrid
from ttreg_interp.interventions.per_image import check_batch, counts, per_image
from ttreg_interp.interventions.selector import Bound, ChosenRows, Selector, chosen
from ttreg_interp.interventions.value import Stored, TensorValue

Drawing = Literal["heart", "disc", "ring", "cross"]
GridMask = Bool[Tensor, "image height width"]


@dataclass(frozen=True, repr=False)
class Rows(Selector):
    """Rows of the token axis of the run, added rows counted.

    Example:
        >>> Rows((0, 5)), Rows(((0, 1), (2,)))
        (<Rows: rows 0, 5>, <Rows: 2, 1 rows in 2 images>)
    """

    rows: tuple
    """Row indices; or one tuple of them for every image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._images()

    def _images(self) -> tuple[tuple[int, ...], ...]:
        return per_image(self.rows, lambda row: isinstance(row, int) and row >= 0, "rows >= 0")

    def describe(self) -> str:
        """What it selects, in words."""
        first, *others = self._images()
        if others:
            return counts((first, *others), "rows")
        return f"rows {', '.join(map(str, first))}"

    def bind(self, frame: Frame, at: str) -> Bound:
        """See Selector."""
        images = self._images()
        highest = max((row for one in images for row in one), default=0)

        def rows(n_tokens: int, device: torch.device) -> ChosenRows:
            if highest >= n_tokens:
                raise InterventionError(
                    f"Row {highest} is not in this run of {frame.name}: its {n_tokens} tokens are rows "
                    f"0 to {n_tokens - 1}."
                )
            index = [torch.tensor(one, dtype=torch.long, device=device) for one in images]
            return torch.cat([chosen(one, n_tokens, device) for one in index])

        return Bound(rows, check_batch(at, len(images), self.describe()))


@dataclass(frozen=True, repr=False)
class OnGrid(Selector):
    """Patches by their place in the image; a kind says which places of a grid."""

    @property
    def n_images(self) -> int:
        """Target sets; 1 where all images share one."""
        return 1

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Height and width of the images that it is made for; None: those of the model."""
        return None

    @abstractmethod
    def on_grid(self, grid: PatchGrid) -> GridMask:
        """The selected places of a patch grid.

        Raises:
            InterventionError: a place outside.
        """

    def bind(self, frame: Frame, at: str) -> Bound:
        """See Selector; refuses a model without a patch grid."""
        frame.check_has_grid(self.describe())
        frame = frame.at(at)

        def rows(n_tokens: int, device: torch.device) -> ChosenRows:
            patches = frame.layout(n_tokens).patches
            grid = self._grid(frame, patches.stop - patches.start)
            places = self.on_grid(grid).flatten(1).to(device)
            return torch.cat((places.new_zeros(len(places), patches.start), places), dim=1)

        return Bound(rows, check_batch(at, self.n_images, self.describe()))

    def _grid(self, frame: Frame, n_patches: int) -> PatchGrid:
        return frame.grid(n_patches, self.pixels)


@dataclass(frozen=True, repr=False)
class Positions(OnGrid):
    """Patches by (row, column) of the patch grid, counted from the top left.

    Example:
        >>> Positions(((0, 0), (0, 1)))
        <Positions: 2 patches>
    """

    positions: tuple
    """(row, column) pairs; or one tuple of pairs for every image."""
    image_size: tuple[int, int] | None = None
    """Height and width of the images in pixels, where not the model's own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._images()

    def _images(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        return per_image(self.positions, _is_pair, "(row, column) pairs")

    @property
    def n_images(self) -> int:
        """Target sets."""
        return len(self._images())

    @property
    def pixels(self) -> tuple[int, int] | None:
        """See OnGrid."""
        return self.image_size

    def describe(self) -> str:
        """What it selects, in words."""
        return counts(self._images(), "patches")

    def on_grid(self, grid: PatchGrid) -> GridMask:
        """See OnGrid."""
        mask = torch.zeros(self.n_images, grid.height, grid.width, dtype=torch.bool)
        for image, pairs in enumerate(self._images()):
            for row, column in pairs:
                if row >= grid.height or column >= grid.width:
                    raise InterventionError(
                        f"Patch {(row, column)} is outside the grid of {grid.height} x {grid.width} "
                        "patches; rows and columns count from 0."
                    )
                mask[image, row, column] = True
        return mask


def _is_pair(item: Any) -> bool:
    return (
        isinstance(item, tuple)
        and len(item) == 2
        and all(isinstance(index, int) and index >= 0 for index in item)
    )


@dataclass(frozen=True, repr=False)
class Boxes(OnGrid):
    """Patches that a box in pixels overlaps.

    Example:
        >>> Boxes(((16, 16, 48, 48),))
        <Boxes: patches under 1 boxes>
    """

    boxes: tuple
    """(left, top, right, bottom) in pixels, ends excluded; or one tuple of boxes for every image."""
    image_size: tuple[int, int] | None = None
    """Height and width of the images in pixels, where not the model's own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._images()

    def _images(self) -> tuple[tuple[tuple[float | int, ...], ...], ...]:
        return per_image(
            self.boxes, _is_box, "boxes (left, top, right, bottom) with left < right, top < bottom"
        )

    @property
    def n_images(self) -> int:
        """Target sets."""
        return len(self._images())

    @property
    def pixels(self) -> tuple[int, int] | None:
        """See OnGrid."""
        return self.image_size

    def describe(self) -> str:
        """What it selects, in words."""
        return f"patches under {counts(self._images(), 'boxes')}"

    def on_grid(self, grid: PatchGrid) -> GridMask:
        """See OnGrid."""
        top = torch.arange(grid.height)[:, None] * grid.patch_height
        left = torch.arange(grid.width) * grid.patch_width
        mask = torch.zeros(self.n_images, grid.height, grid.width, dtype=torch.bool)
        for image, boxes in enumerate(self._images()):
            for x0, y0, x1, y1 in boxes:
                rows = (top < y1) & (top + grid.patch_height > y0)
                mask[image] |= rows & (left < x1) & (left + grid.patch_width > x0)
        return mask


def _is_box(item: Any) -> bool:
    return (
        isinstance(item, tuple)
        and len(item) == 4
        and all(isinstance(edge, int | float) for edge in item)
        and item[0] < item[2]
        and item[1] < item[3]
    )


@dataclass(frozen=True, repr=False)
class Mask(OnGrid):
    """Patches by a boolean mask, on the patch grid or in pixels.

    Example:
        >>> Mask(torch.eye(4, dtype=torch.bool))
        <Mask: mask of 4 x 4 patches>
    """

    mask: Stored
    """[height, width], or [image, height, width] for one an image."""
    unit: Literal["patches", "pixels"] = "patches"
    """What height and width count."""
    share: float = 0.0
    """In pixels: a patch is selected if more than this part of its pixels is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "mask", TensorValue.of(self.mask))
        if self.mask.tensor.dtype != torch.bool or self.mask.tensor.ndim not in (2, 3):
            raise InterventionError(
                f"A mask is a boolean tensor [height, width] or [image, height, width]; found "
                f"{self.mask}. Compare with a threshold first."
            )

    @property
    def _images(self) -> GridMask:
        mask = self.mask.tensor
        return mask if mask.ndim == 3 else mask[None]

    @property
    def n_images(self) -> int:
        """Target sets."""
        return len(self._images)

    @property
    def pixels(self) -> tuple[int, int] | None:
        """See OnGrid."""
        _, height, width = self._images.shape
        return (height, width) if self.unit == "pixels" else None

    def describe(self) -> str:
        """What it selects, in words."""
        n_images, height, width = self._images.shape
        of = f" for {n_images} images" if n_images > 1 else ""
        return f"mask of {height} x {width} {self.unit}{of}"

    def _grid(self, frame: Frame, n_patches: int) -> PatchGrid:
        if self.unit == "pixels":
            return super()._grid(frame, n_patches)
        _, height, width = self._images.shape
        own = frame.model_layout
        assert isinstance(own, TokenLayout)  # bind has seen to it
        known = own.n_patches == n_patches
        if height * width != n_patches or (known and (height, width) != (own.height, own.width)):
            raise InterventionError(
                f"The {self.describe()} does not fit images of {n_patches} patches"
                f"{f' ({own.height} x {own.width})' if known else ''}. Make the mask on that grid, or "
                "pass one in pixels: Mask(mask, unit='pixels')."
            )
        return PatchGrid(height, width, *frame.model.parts.patch_size)

    def on_grid(self, grid: PatchGrid) -> GridMask:
        """See OnGrid."""
        if self.unit == "patches":
            return self._images
        patches = self._images.unflatten(2, (grid.width, -1)).unflatten(1, (grid.height, -1))
        return patches.float().mean(dim=(2, 4)) > self.share


@dataclass(frozen=True, repr=False)
class Shape(OnGrid):
    """Patches that a drawing covers, stretched over the image (the heart is the teaser of 2506.08010).

    Example:
        >>> Shape("heart")
        <Shape: patches of a heart>
    """

    drawing: Drawing = "heart"
    """Which."""
    image_size: tuple[int, int] | None = None
    """Height and width of the images in pixels, where not the model's own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drawing not in get_args(Drawing):
            raise InterventionError(
                f"No drawing {self.drawing!r}; there are {', '.join(get_args(Drawing))}. For others "
                "pass a Mask."
            )

    @property
    def pixels(self) -> tuple[int, int] | None:
        """See OnGrid."""
        return self.image_size

    def describe(self) -> str:
        """What it selects, in words."""
        return f"patches of a {self.drawing}"

    def on_grid(self, grid: PatchGrid) -> GridMask:
        """See OnGrid."""
        x = ((torch.arange(grid.width) + 0.5) / grid.width * 2 - 1)[None, :]
        y = (1 - (torch.arange(grid.height) + 0.5) / grid.height * 2)[:, None]
        drawn = {
            "heart": _heart(1.25 * x, 1.25 * y + 0.15),
            "disc": x**2 + y**2 <= 0.5,
            "ring": (x**2 + y**2 - 0.5).abs() <= 0.25,
            "cross": (x.abs() < 0.25) | (y.abs() < 0.25),
        }
        return drawn[self.drawing].expand(1, grid.height, grid.width)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3


@dataclass(frozen=True, repr=False)
class RandomPatches(OnGrid):
    """As many patches, drawn once for all images: the control for a chosen place.

    Example:
        >>> RandomPatches(3, seed=1)
        <RandomPatches: 3 random patches (seed 1)>
    """

    n_patches: int
    """How many."""
    seed: int
    """Of the draw."""
    image_size: tuple[int, int] | None = None
    """Height and width of the images in pixels, where not the model's own."""

    @property
    def pixels(self) -> tuple[int, int] | None:
        """See OnGrid."""
        return self.image_size

    def describe(self) -> str:
        """What it selects, in words."""
        return f"{self.n_patches} random patches (seed {self.seed})"

    def on_grid(self, grid: PatchGrid) -> GridMask:
        """See OnGrid."""
        n_all = grid.height * grid.width
        if not 1 <= self.n_patches <= n_all:
            raise InterventionError(
                f"{self.n_patches} random patches of the {n_all} that these images have; draw 1 to "
                f"{n_all}."
            )
        generator = torch.Generator().manual_seed(self.seed)
        mask = torch.zeros(1, n_all, dtype=torch.bool)
        mask[:, torch.randperm(n_all, generator=generator)[: self.n_patches]] = True
        return mask.unflatten(1, (grid.height, grid.width))
