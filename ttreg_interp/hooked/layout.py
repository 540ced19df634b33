"""Which rows of the token axis are which."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from ttreg_interp.errors import LayoutError


@dataclass(frozen=True)
class TokenLayout:
    """The token axis of one forward pass: [CLS], trained registers, test-time registers, patches.

    Test-time registers stand between the prefix of the source model and its patches, because
    rotary embeddings (DINOv3) count patches from the end of the token axis.

    Example:
        >>> layout = TokenLayout(n_cls=1, n_trained_registers=4, height=2, width=3)
        >>> layout.patches, layout.n_tokens
        (slice(5, 11, None), 11)
        >>> layout.with_test_time_registers(1).patches
        slice(6, 12, None)
    """

    causal: ClassVar[bool] = False
    """Every token sees all others."""

    n_cls: int
    """Class rows: 0, 1, or 2 where a distillation token stands beside [CLS]."""
    n_trained_registers: int
    """Learned register tokens of the checkpoint."""
    height: int
    """Rows of the patch grid."""
    width: int
    """Columns of the patch grid."""
    n_test_time_registers: int = 0
    """Registers that an intervention added."""

    def __post_init__(self) -> None:
        counts = (self.n_cls, self.n_trained_registers, self.n_test_time_registers)
        if min(counts) < 0 or min(self.height, self.width) < 1:
            raise LayoutError(
                f"A layout needs counts >= 0 and a grid of at least 1 x 1; found [CLS] rows "
                f"{self.n_cls}, trained registers {self.n_trained_registers}, test-time registers "
                f"{self.n_test_time_registers}, grid {self.height} x {self.width}."
            )

    @property
    def n_prefix(self) -> int:
        """Rows that the source model itself puts before the patches."""
        return self.n_cls + self.n_trained_registers

    @property
    def n_patches(self) -> int:
        """Rows of the grid: height x width."""
        return self.height * self.width

    @property
    def n_tokens(self) -> int:
        """Length of the token axis."""
        return self.n_prefix + self.n_test_time_registers + self.n_patches

    @property
    def cls(self) -> slice:
        """The class rows; empty in a model without [CLS]."""
        return slice(0, self.n_cls)

    @property
    def trained_registers(self) -> slice:
        """The learned registers of the checkpoint."""
        return slice(self.n_cls, self.n_prefix)

    @property
    def test_time_registers(self) -> slice:
        """The registers that an intervention added."""
        return slice(self.n_prefix, self.n_prefix + self.n_test_time_registers)

    @property
    def patches(self) -> slice:
        """The patch rows, in raster order."""
        return slice(self.n_prefix + self.n_test_time_registers, self.n_tokens)

    def part(self, name: str) -> slice:
        """Rows of a part by its name; none where an image has no such part."""
        parts = {
            "cls": self.cls,
            "trained_registers": self.trained_registers,
            "test_time_registers": self.test_time_registers,
            "patches": self.patches,
        }
        return parts.get(name, slice(0, 0))

    def describe(self) -> str:
        """Its parts and how many rows they have, in words."""
        return (
            f"{self.n_cls} [CLS], {self.n_trained_registers} trained registers, "
            f"{self.n_test_time_registers} test-time registers, {self.n_patches} patches"
        )

    def with_counts(self, n_patches: int, n_registers: int) -> "TokenLayout":
        """The layout of a run with other numbers of patches and test-time registers.

        The grid is one row if the number of patches is not this layout's.
        """
        grid = {} if n_patches == self.n_patches else {"height": 1, "width": n_patches}
        return replace(self, n_test_time_registers=n_registers, **grid)

    def with_test_time_registers(self, n_registers: int) -> "TokenLayout":
        """The same layout with `n_registers` test-time registers in place of the present ones."""
        return replace(self, n_test_time_registers=n_registers)

    def of_length(self, n_tokens: int) -> "TokenLayout":
        """This layout with as many test-time registers as a token axis of `n_tokens` rows holds.

        Raises:
            LayoutError: `n_tokens` is smaller than prefix and patches together.
        """
        bare = self.with_test_time_registers(0)
        if n_tokens < bare.n_tokens:
            raise LayoutError(
                f"{n_tokens} token rows are fewer than the {bare.n_tokens} of {bare}. "
                "Rows of this model may be added or masked, not deleted."
            )
        return self.with_test_time_registers(n_tokens - bare.n_tokens)

    def grid(self, tokens: Shaped[Tensor, "..."], token_axis: int = -1) -> Shaped[Tensor, "..."]:
        """Patch rows as a picture: the token axis becomes `height, width`.

        Args:
            tokens: anything with a token axis of `n_tokens` rows, or of `n_patches` rows.
            token_axis: which axis that is.

        Raises:
            LayoutError: the axis has neither `n_tokens` nor `n_patches` rows.
        """
        token_axis %= tokens.ndim
        n_rows = tokens.shape[token_axis]
        if n_rows == self.n_tokens:
            tokens = tokens.narrow(token_axis, self.patches.start, self.n_patches)
        elif n_rows != self.n_patches:
            raise LayoutError(
                f"Axis {token_axis} of shape {tuple(tokens.shape)} has {n_rows} rows; the layout "
                f"has {self.n_tokens} tokens, of which {self.n_patches} are patches."
            )
        return tokens.unflatten(token_axis, (self.height, self.width))

    def insert_registers(
        self,
        tokens: Shaped[Tensor, "batch token d_model"],
        registers: Shaped[Tensor, "batch register d_model"],
    ) -> Shaped[Tensor, "batch longer d_model"]:
        """`tokens` with `registers` placed after the prefix (and after registers already there)."""
        at = self.patches.start
        return torch.cat((tokens[:, :at], registers, tokens[:, at:]), dim=1)

    def drop_registers(
        self, tokens: Shaped[Tensor, "batch token d_model"]
    ) -> Shaped[Tensor, "batch fewer d_model"]:
        """`tokens` without the test-time registers; the same object where there are none."""
        if self.n_test_time_registers == 0:
            return tokens
        return torch.cat((tokens[:, : self.n_prefix], tokens[:, self.patches]), dim=1)

    def row_names(self) -> list[str]:
        """A name for every row, for tables and plots.

        Example:
            >>> TokenLayout(1, 0, 1, 2, n_test_time_registers=1).row_names()
            ['CLS', 'test-time register 0', 'patch 0,0', 'patch 0,1']
        """
        return [
            *["CLS", "distillation"][: self.n_cls],
            *(f"trained register {i}" for i in range(self.n_trained_registers)),
            *(f"test-time register {i}" for i in range(self.n_test_time_registers)),
            *(
                f"patch {row},{column}"
                for row in range(self.height)
                for column in range(self.width)
            ),
        ]
