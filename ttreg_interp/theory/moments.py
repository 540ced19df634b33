"""Running sums from which the measures of `theory.sinks` are read off."""

from collections import defaultdict

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ttreg_interp.metrics.intervals import Interval
from ttreg_interp.theory.gains import Grams
from ttreg_interp.theory.noop_table import HeadNoOp

TINY = 1e-30
"""Keeps 0 / 0 at 0."""

HEAD_GAINS = ("head_gain", "head_gain_of_others")
"""Measures that a model without a linear head does not have."""


class Moments:
    """Mean and spread over images of one value a column, from sums."""

    def __init__(self) -> None:
        self.n = 0
        self.total = self.squares = torch.zeros(())

    def add(self, values: Float[Tensor, "batch column"]) -> None:
        """Values of more images."""
        values = values.double().cpu()
        self.n += len(values)
        self.total = self.total + values.sum(dim=0)
        self.squares = self.squares + values.square().sum(dim=0)

    def intervals(self) -> list[Interval]:
        """Mean of each column with its 95 % normal interval; a point for a single image."""
        mean = self.total / self.n
        variance = (self.squares / self.n - mean.square()).clamp(min=0) / max(1, self.n - 1)
        half = 1.959964 * variance.sqrt()
        method = "normal, from running sums" if self.n > 1 else "one image: no interval"
        return [
            Interval(m, m - h, m + h, level=0.95, method=method, n=self.n)
            for m, h in zip(mean.tolist(), half.tolist(), strict=True)
        ]


class HeadSums:
    """Sums over images and queries for the heads of one layer."""

    def __init__(self, grams: Grams):
        self.grams = grams
        self.means: dict[str, Moments] = defaultdict(Moments)
        self.n = 0.0
        self.residual = self.units = self.kept = self.freed = torch.zeros(())
        self.kept_squares = self.freed_squares = torch.zeros(())

    def add(
        self,
        pattern: Float[Tensor, "batch head query key"],
        values: Float[Tensor, "batch head key d_head"],
        keys: Bool[Tensor, "batch key"],
        queries: Bool[Tensor, "batch query"],
        norms: Float[Tensor, "batch query"],
    ) -> Float[Tensor, "batch head query d_head"]:
        """One batch; returns pattern x values, for a check."""
        sink = keys[:, None, None]
        z = pattern @ values
        from_sink = ((pattern * sink) @ values).double()
        others = ((pattern * ~sink) @ values).double()
        left = (pattern * ~sink).sum(dim=-1).double()
        weight = queries[:, None].double() / queries.sum(dim=1)[:, None, None]  # [batch, 1, query]
        self._add_means(from_sink, others, weight, norms[:, None].double())
        share = (pattern * sink).sum(dim=-1).double()
        self.means["attention"].add((share * weight).sum(dim=-1))
        self.means["value_ratio"].add(_value_ratio(values, keys))
        self._add_pooled(from_sink, others, left, queries)
        self.residual = self.residual + (norms * queries).double().sum().cpu()
        return z

    def _add_means(self, from_sink: Tensor, others: Tensor, weight: Tensor, norms: Tensor) -> None:
        forms = {"mlp": self.grams.mlp, "head": self.grams.head}
        for z, size, of in ((from_sink, "sink_size", ""), (others, "other_size", "_of_others")):
            squares = _squares(z, self.grams.whole)
            self.means[size].add((squares.sqrt() / norms.clamp(min=TINY) * weight).sum(dim=-1))
            whole = (squares * weight).sum(dim=-1).clamp(min=TINY)
            for reader, form in forms.items():
                if form is not None:
                    response = (_squares(z, form) * weight).sum(dim=-1)
                    self.means[f"{reader}_gain{of}"].add((response / whole).sqrt())

    def _add_pooled(self, from_sink: Tensor, others: Tensor, left: Tensor, queries: Tensor) -> None:
        rows = queries[:, None, :, None].double()
        length = _squares(from_sink, self.grams.whole).sqrt()[..., None].clamp(min=TINY)
        kept, freed = from_sink + others, others / left[..., None].clamp(min=TINY)
        self.n += float(queries.sum())
        self.units = self.units + _total(from_sink / length * rows)
        for name, z in (("kept", kept), ("freed", freed)):
            squares = (_squares(z, self.grams.whole) * rows[..., 0]).sum(dim=(0, 2)).cpu()
            setattr(self, name, getattr(self, name) + _total(z * rows))
            setattr(self, f"{name}_squares", getattr(self, f"{name}_squares") + squares)

    def rows(self, layer: int) -> list[HeadNoOp]:
        """The measures, one row a head."""
        means = {name: moments.intervals() for name, moments in self.means.items()}
        missing = {} if self.grams.head is not None else dict.fromkeys(HEAD_GAINS)
        residual = self.residual / self.n
        gram = self.grams.whole.cpu()
        constant = _lengths(self.kept / self.n, gram) / residual
        varying = self._varying(self.kept, self.kept_squares, gram) / residual
        freed = self._varying(self.freed, self.freed_squares, gram) / residual
        pairs = max(1.0, self.n * (self.n - 1))
        cosine = (_lengths(self.units, gram).square() - self.n) / pairs
        return [
            HeadNoOp(
                layer=layer,
                head=head,
                **{name: intervals[head] for name, intervals in means.items()},
                **missing,  # type: ignore[arg-type]
                cosine=float(cosine[head]),
                constant=float(constant[head]),
                varying=float(varying[head]),
                varying_without_sink=float(freed[head]),
            )
            for head in range(len(gram))
        ]

    def _varying(self, total: Tensor, squares: Tensor, gram: Tensor) -> Float[Tensor, " head"]:
        """Root mean square distance from the mean."""
        mean = _lengths(total / self.n, gram).square()
        return (squares / self.n - mean).clamp(min=0).sqrt()


def _squares(
    z: Float[Tensor, "batch head query d_head"], gram: Float[Tensor, "head d_head d_head"]
) -> Float[Tensor, "batch head query"]:
    """z G z, row by row."""
    return ((z @ gram.to(z)) * z).sum(dim=-1).clamp(min=0)


def _lengths(
    z: Float[Tensor, "head d_head"], gram: Float[Tensor, "head d_head d_head"]
) -> Float[Tensor, " head"]:
    return torch.einsum("hd,hde,he->h", z, gram, z).clamp(min=0).sqrt()


def _total(z: Float[Tensor, "batch head query d_head"]) -> Float[Tensor, "head d_head"]:
    return z.sum(dim=(0, 2)).cpu()


def _value_ratio(
    values: Float[Tensor, "batch head key d_head"], keys: Bool[Tensor, "batch key"]
) -> Float[Tensor, "batch head"]:
    norms = values.double().norm(dim=-1)
    sink = keys[:, None].double()
    of_sink = (norms * sink).sum(dim=-1) / sink.sum(dim=-1)
    of_others = (norms * (1 - sink)).sum(dim=-1) / (1 - sink).sum(dim=-1)
    return of_sink / of_others.clamp(min=TINY)
