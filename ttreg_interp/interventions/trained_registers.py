"""What becomes of the learned registers of a checkpoint."""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import InterventionError
from ttreg_interp.hooked.intervened import NamedHook
from ttreg_interp.interventions.base import Intervention, flattened
from ttreg_interp.interventions.frame import Frame
from ttreg_interp.interventions.masks import AttentionMask, hide_keys
from ttreg_interp.interventions.selector import chosen
from ttreg_interp.interventions.value import Stored, TensorValue, check_choice

State = Literal["kept", "dropped", "mean", "synthetic"]


@dataclass(frozen=True, repr=False)
class TrainedRegisters(Intervention):
    """Keeps the trained registers, hides them, or puts something else in their rows.

        kept:      the model as it is; the arm to compare with
        dropped:   no token attends to them in blocks >= from_layer
        mean:      x[r] = mean over images of x[r], at the output of blocks >= from_layer (Fix-Reg-Mean)
        synthetic: before block from_layer, x[r0][d] = the x[r][d] of largest magnitude over r, sign
                   kept, for every dimension d; the other registers are hidden from there on

    Raises:
        InterventionError: a model without trained registers; means with another state than 'mean', or of
            another shape; a second TrainedRegisters in the composition.

    Source: 'mean' arXiv 2402.17762, section 5 (ViT); 'synthetic' arXiv 2506.08010, Table 8.

    Example:
        >>> TrainedRegisters("dropped")
        <TrainedRegisters: trained registers dropped>
    """

    state: State
    """What becomes of them."""
    means: Stored | None = None
    """For 'mean': [layer, register, d_model], layers from `from_layer` on, as many as are to be fixed;
    `mean_trained_registers` computes them."""
    from_layer: int = 0
    """The first block where it acts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("state", self.state, State)
        if (self.means is not None) != (self.state == "mean"):
            raise InterventionError(
                f"TrainedRegisters({self.state!r}) with means={self.means}: state 'mean' needs means, the "
                "others take none. measure.mean_trained_registers(model, batches) computes them."
            )
        if self.means is not None:
            object.__setattr__(self, "means", TensorValue.of(self.means))

    def describe(self) -> str:
        """What it does, in words."""
        words = {"mean": "fixed to their mean", "synthetic": "merged by signed maximum"}
        at = f" from block {self.from_layer} on" if self.from_layer else ""
        return f"trained registers {words.get(self.state, self.state)}{at}"

    def check_compatible(self, others: Items[Any]) -> None:
        """Only one may say what becomes of the trained registers.

        Raises:
            InterventionError: two do.
        """
        super().check_compatible(others)
        for other in flattened(others):
            if isinstance(other, TrainedRegisters):
                raise InterventionError(
                    f"{other!r} and {self!r} both say what becomes of the trained registers. Apply one."
                )

    def _hooks(self, frame: Frame) -> list[NamedHook]:
        layout = frame.model_layout
        frame.layers((self.from_layer,))
        if layout.n_trained_registers == 0:
            raise InterventionError(
                f"{frame.name} has no trained registers. For tokens added at test time, use "
                "TestTimeRegister, ExtraTokens or MaskTokens('test_time_registers')."
            )
        return {
            "kept": lambda: [],
            "dropped": lambda: self._hide(frame, layout.trained_registers),
            "mean": lambda: self._fix(frame, layout.trained_registers),
            "synthetic": lambda: self._merge(frame, layout.trained_registers),
        }[self.state]()

    def _hide(self, frame: Frame, rows: slice) -> list[NamedHook]:
        hide = partial(_hide_rows, rows)
        return [
            (f"blocks.{layer}.attn.hook_mask", hide)
            for layer in range(self.from_layer, frame.n_layers)
        ]

    def _fix(self, frame: Frame, rows: slice) -> list[NamedHook]:
        assert self.means is not None
        layers = frame.n_layers - self.from_layer
        found = tuple(self.means.tensor.shape)
        expected = (rows.stop - rows.start, int(frame.model.cfg.d_model))
        if len(found) != 3 or found[1:] != expected or not 1 <= found[0] <= layers:
            raise InterventionError(
                f"Means of trained registers have shape {list(found)}; {frame.name} takes [layer, "
                f"{expected[0]}, {expected[1]}] with 1 to {layers} layers from block {self.from_layer} on."
            )
        return [
            (f"blocks.{self.from_layer + i}.hook_resid_post", partial(self._write_mean, rows, i))
            for i in range(found[0])
        ]

    def _write_mean(
        self, rows: slice, index: int, resid: Tensor, hook: Any
    ) -> Float[Tensor, "batch token d_model"]:
        assert self.means is not None
        mean = self.means.like(resid)[index].expand(len(resid), -1, -1)
        return torch.cat((resid[:, : rows.start], mean, resid[:, rows.stop :]), dim=1)

    def _merge(self, frame: Frame, rows: slice) -> list[NamedHook]:
        first = (f"blocks.{self.from_layer}.hook_resid_pre", partial(_merge_rows, rows))
        others = slice(rows.start + 1, rows.stop)
        return [first, *(self._hide(frame, others) if others.start < others.stop else [])]


def _hide_rows(rows: slice, mask: Tensor, hook: Any) -> AttentionMask:
    return hide_keys(mask, chosen(rows, mask.shape[2], mask.device))


def _merge_rows(rows: slice, resid: Tensor, hook: Any) -> Float[Tensor, "batch token d_model"]:
    registers = resid[:, rows]
    largest = registers.abs().argmax(dim=1, keepdim=True)
    merged = registers.gather(1, largest)
    return torch.cat((resid[:, : rows.start], merged, resid[:, rows.start + 1 :]), dim=1)
