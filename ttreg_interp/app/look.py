"""What the page shows of one image: norms, attention of any token, a neuron, and numbers."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ttreg_interp.errors import DataError
from ttreg_interp.hooked import HookedViT, TokenLayout
from ttreg_interp.interventions import Intervention, NeuronSet
from ttreg_interp.metrics.trace import check_finite_layers

MEAN_PATCH = "mean over patches"
"""The query of a model without [CLS], until another is chosen."""
Pair = tuple[float | None, float | None]
"""A number of the intact and of the intervened model; None where it has no meaning."""


@dataclass(frozen=True)
class View:
    """What of a forward pass is on show."""

    layer: int
    """After which block norms are read, and whose attention is shown."""
    head: int | None = None
    """Which head; None: the mean over heads."""
    query: str = "CLS"
    """Whose attention: a name of `TokenLayout.row_names`, or `MEAN_PATCH`."""
    neuron: tuple[int, int] | None = None
    """Layer and number of the neuron that is mapped."""


@dataclass(frozen=True, eq=False)
class Seen:
    """One layer of one forward pass."""

    norms: Float[Tensor, " token"]
    """Residual norm after the block, before any final norm."""
    pattern: Float[Tensor, "head query key"]
    """Attention in the block."""
    neuron: Float[Tensor, " token"] | None
    """Activation of the mapped neuron."""
    output: Float[Tensor, " output"]
    """What the model returned."""
    layout: TokenLayout
    """Which rows are which."""

    def attention(self, view: View) -> Float[Tensor, " key"] | None:
        """Attention of the query to every token; None where this pass has no such token."""
        pattern = self.pattern.mean(dim=0) if view.head is None else self.pattern[view.head]
        if view.query == MEAN_PATCH:
            return pattern[self.layout.patches].mean(dim=0)
        names = self.layout.row_names()
        return pattern[names.index(view.query)] if view.query in names else None

    @property
    def patch_norms(self) -> Float[Tensor, " patch"]:
        """Norms of the patches alone."""
        return self.norms[self.layout.patches]


@dataclass(frozen=True, eq=False)
class Look:
    """One image, intact and under an intervention."""

    intact: Seen
    """The model as it is."""
    intervened: Seen
    """Under the intervention."""

    @property
    def both(self) -> tuple[Seen, Seen]:
        """Intact, then intervened."""
        return self.intact, self.intervened

    def queries(self) -> list[str]:
        """Names of the tokens before the patches, of either pass, and the mean patch."""
        names = [name for seen in self.both for name in seen.layout.row_names()]
        return [*dict.fromkeys(n for n in names if not n.startswith("patch ")), MEAN_PATCH]

    def numbers(self, view: View) -> dict[str, Pair]:
        """The numbers under the maps.

        Raises:
            DataError: neither pass has the query.
        """
        rows = [seen.attention(view) for seen in self.both]
        if rows[0] is None and rows[1] is None:
            raise DataError(
                f"There is no token {view.query!r}. Click a patch, or write one of "
                f"{', '.join(self.queries())}, or 'patch ROW,COLUMN'."
            )
        found: dict[str, Pair] = {
            "largest / median patch norm": self._each(
                lambda seen: seen.patch_norms.max() / seen.patch_norms.median()
            )
        }
        if view.query in self.intact.layout.row_names():
            found["norm of the query"] = self._each(lambda seen: seen.norms[_row(seen, view)])
        found["largest attention to one patch"] = _pair(
            None if row is None else row[seen.layout.patches].max()
            for seen, row in zip(self.both, rows, strict=True)
        )
        added = self.intervened.layout.test_time_registers
        if added.start < added.stop and rows[1] is not None:
            found["attention to added tokens"] = (None, float(rows[1][added].sum()))
        if self.intact.neuron is not None:
            found["largest |activation| of the neuron"] = self._each(
                lambda seen: seen.neuron[seen.layout.patches].abs().max()
            )
        return found | {"change of the output": (None, self.output_change)}

    def _each(self, read) -> Pair:
        return _pair(read(seen) for seen in self.both)

    @property
    def output_change(self) -> float:
        """||output - intact|| / ||intact||."""
        intact = self.intact.output
        return float((self.intervened.output - intact).norm() / intact.norm())


def look(
    model: HookedViT,
    pixels: Float[Tensor, "1 channel height width"],
    intervention: Intervention,
    view: View,
) -> Look:
    """Run one image with and without an intervention.

    Every query and head of the view's layer is in the result; another layer, or another neuron,
    needs another run.

    Args:
        model: any HookedViT.
        pixels: one preprocessed image.
        intervention: what to do.
        view: its layer and neuron are read.

    Raises:
        InterventionError: the intervention or the neuron does not fit the model.
        ContractError: NaN or inf in the residual stream.
    """
    if view.neuron is not None:
        NeuronSet.of([view.neuron]).check(model.cfg.n_layers, model.cfg.d_mlp, model.cfg.model_name)
    pixels = pixels.to(model.cfg.device, model.cfg.dtype)
    intact = _seen(model, pixels, view)
    with model.intervened(intervention):
        return Look(intact, _seen(model, pixels, view))


@torch.no_grad()
def _seen(model: HookedViT, pixels: Tensor, view: View) -> Seen:
    block, names = f"blocks.{view.layer}", ["hook_resid_post", "attn.hook_pattern"]
    hooks = [f"{block}.{name}" for name in names]
    if view.neuron is not None:
        hooks.append(f"blocks.{view.neuron[0]}.mlp.hook_post")
    output, cache = model.run_with_cache(pixels, names_filter=hooks)
    norms = cache[hooks[0]][0].norm(dim=-1).float()
    check_finite_layers(norms[None], model.cfg.model_name)
    return Seen(
        norms=norms.cpu(),
        pattern=cache[hooks[1]][0].float().cpu(),
        neuron=cache[hooks[2]][0, :, view.neuron[1]].float().cpu() if view.neuron else None,
        output=output.flatten().float().cpu(),
        layout=cache.layout,
    )


def _row(seen: Seen, view: View) -> int:
    return seen.layout.row_names().index(view.query)


def _pair(values) -> Pair:
    intact, intervened = (None if value is None else float(value) for value in values)
    return intact, intervened
