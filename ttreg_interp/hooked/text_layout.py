"""Which rows of a language model's token axis are which."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from ttreg_interp.errors import LayoutError
from ttreg_interp.hooked.layout import TokenLayout


@dataclass(frozen=True)
class TextLayout:
    """The token axis of one forward pass over texts: test-time registers, BOS, text.

    Registers stand in front: a token sees what stands before it only, and a register is meant for
    all tokens. They take no position of their own.

    Example:
        >>> layout = TextLayout(n_given=5, n_test_time_registers=1)
        >>> layout.test_time_registers, layout.bos, layout.text
        (slice(0, 1, None), slice(1, 2, None), slice(2, 6, None))
    """

    causal: ClassVar[bool] = True
    """A token sees itself and what stands before it."""
    n_cls: ClassVar[int] = 0
    """No [CLS]."""
    n_trained_registers: ClassVar[int] = 0
    """None."""

    n_given: int
    """Tokens that the model is given, the first of them included."""
    n_test_time_registers: int = 0
    """Registers that an intervention added."""

    def __post_init__(self) -> None:
        if self.n_given < 1 or self.n_test_time_registers < 0:
            raise LayoutError(
                f"A text has at least 1 token and 0 registers; found {self.n_given} and "
                f"{self.n_test_time_registers}."
            )

    @property
    def n_prefix(self) -> int:
        """Rows before the test-time registers: none."""
        return 0

    @property
    def n_tokens(self) -> int:
        """Length of the token axis."""
        return self.n_test_time_registers + self.n_given

    @property
    def test_time_registers(self) -> slice:
        """The registers that an intervention added."""
        return slice(0, self.n_test_time_registers)

    @property
    def patches(self) -> slice:
        """What stands where an image has its patches: all tokens that the model is given."""
        return slice(self.n_test_time_registers, self.n_tokens)

    @property
    def n_patches(self) -> int:
        """Rows of `patches`."""
        return self.n_given

    @property
    def cls(self) -> slice:
        """No row: a language model has no [CLS]."""
        return slice(0, 0)

    @property
    def trained_registers(self) -> slice:
        """No row."""
        return slice(0, 0)

    @property
    def bos(self) -> slice:
        """The first token: BOS, where the tokenizer puts one."""
        return slice(self.n_test_time_registers, self.n_test_time_registers + 1)

    @property
    def text(self) -> slice:
        """All given tokens but the first."""
        return slice(self.n_test_time_registers + 1, self.n_tokens)

    def part(self, name: str) -> slice:
        """Rows of a part by its name; none where a text has no such part."""
        parts = {
            "bos": self.bos,
            "text": self.text,
            "test_time_registers": self.test_time_registers,
        }
        return parts.get(name, slice(0, 0))

    def describe(self) -> str:
        """Its parts and how many rows they have, in words."""
        return (
            f"{self.n_test_time_registers} test-time registers, BOS, {self.n_given - 1} text tokens"
        )

    def with_counts(self, n_patches: int, n_registers: int) -> "TextLayout":
        """The layout of a run with other numbers of tokens and test-time registers."""
        return TextLayout(n_patches, n_registers)

    def with_test_time_registers(self, n_registers: int) -> "TextLayout":
        """The same layout with `n_registers` test-time registers in place of the present ones."""
        return replace(self, n_test_time_registers=n_registers)

    def of_length(self, n_tokens: int) -> "TextLayout":
        """This layout with as many test-time registers as a token axis of `n_tokens` rows holds.

        Raises:
            LayoutError: `n_tokens` is smaller than the text.
        """
        if n_tokens < self.n_given:
            raise LayoutError(
                f"{n_tokens} token rows are fewer than the {self.n_given} of the text. Tokens of a "
                "language model may be added or masked, not deleted."
            )
        return self.with_test_time_registers(n_tokens - self.n_given)

    def drop_registers(
        self, tokens: Shaped[Tensor, "batch token d_model"]
    ) -> Shaped[Tensor, "batch fewer d_model"]:
        """`tokens` without the test-time registers; the same object where there are none."""
        return tokens if self.n_test_time_registers == 0 else tokens[:, self.patches]

    def insert_registers(
        self,
        tokens: Shaped[Tensor, "batch token d_model"],
        registers: Shaped[Tensor, "batch register d_model"],
    ) -> Shaped[Tensor, "batch longer d_model"]:
        """`tokens` with `registers` placed before the text (and after registers already there)."""
        at = self.patches.start
        return torch.cat((tokens[:, :at], registers, tokens[:, at:]), dim=1)

    def row_names(self) -> list[str]:
        """A name for every row, for tables and plots.

        Example:
            >>> TextLayout(3, n_test_time_registers=1).row_names()
            ['test-time register 0', 'BOS', 'token 1', 'token 2']
        """
        return [
            *(f"test-time register {i}" for i in range(self.n_test_time_registers)),
            "BOS",
            *(f"token {i}" for i in range(1, self.n_given)),
        ]


Layout = TokenLayout | TextLayout
"""Of images, or of texts."""
