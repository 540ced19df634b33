"""Statistics of activations that stream: hooks feed them, and nothing is cached that is only summed."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ttreg_interp.errors import ContractError, DataError
from ttreg_interp.hooked.intervened import NamedHook


@runtime_checkable
class Reducer(Protocol):
    """Takes activations batch by batch, and holds no more than its result."""

    def add(self, activation: Float[Tensor, "batch token *rest"], first_image: int) -> None:
        """One batch, of which the first image has this number."""
        ...


class Mean:
    """Mean and variance over images and tokens of every other entry.

    Batches are merged as Chan, Golub and LeVeque do, in float64: large means lose no digits.

    Example:
        >>> mean = Mean()
        >>> mean.add(torch.tensor([[[1.0], [3.0]]]), 0)
        >>> mean.mean.item(), mean.variance.item()
        (2.0, 2.0)
    """

    def __init__(self) -> None:
        self.n = 0
        self.mean = self._squares = torch.zeros(())

    def add(self, activation: Float[Tensor, "batch token *rest"], first_image: int = 0) -> None:
        """One batch."""
        rows = activation.flatten(0, 1).double()
        mean = rows.mean(dim=0)
        self._merge(len(rows), mean.cpu(), (rows - mean).square().sum(dim=0).cpu())

    def merge(self, other: "Mean") -> None:
        """What another reducer has seen, as if seen here."""
        self._merge(other.n, other.mean, other._squares)

    def _merge(self, n: int, mean: Tensor, squares: Tensor) -> None:
        if not n:
            return
        total, apart = self.n + n, mean - self.mean
        self._squares = self._squares + squares + apart.square() * (self.n * n / total)
        self.mean = self.mean + apart * (n / total)
        self.n = total

    @property
    def variance(self) -> Float[Tensor, "*rest"]:
        """Unbiased variance over images and tokens."""
        return self._squares / max(1, self.n - 1)


class TopK:
    """The k largest activations of every entry, and the image and token that they came from.

    Example:
        >>> top = TopK(2)
        >>> top.add(torch.tensor([[[1.0], [7.0], [3.0]]]), first_image=5)
        >>> top.values[:, 0].tolist(), top.images[:, 0].tolist(), top.tokens[:, 0].tolist()
        ([7.0, 3.0], [5, 5], [1, 2])
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.values: Float[Tensor, "k *rest"] = torch.empty(0)
        self.images: Int[Tensor, "k *rest"] = torch.empty(0, dtype=torch.long)
        self.tokens: Int[Tensor, "k *rest"] = torch.empty(0, dtype=torch.long)

    def add(self, activation: Float[Tensor, "batch token *rest"], first_image: int = 0) -> None:
        """One batch."""
        n_tokens = activation.shape[1]
        values, at = activation.flatten(0, 1).topk(min(self.k, activation[..., 0].numel()), dim=0)
        self._merge(values.cpu(), first_image + at.cpu() // n_tokens, at.cpu() % n_tokens)

    def merge(self, other: "TopK") -> None:
        """What another reducer has seen, as if seen here."""
        self._merge(other.values, other.images, other.tokens)

    def _merge(self, values: Tensor, images: Tensor, tokens: Tensor) -> None:
        if self.values.numel():
            values = torch.cat((self.values, values))
            images, tokens = torch.cat((self.images, images)), torch.cat((self.tokens, tokens))
        # stable: of equal values the one that was seen first stays
        order = values.argsort(dim=0, descending=True, stable=True)[: self.k]
        self.values, self.images, self.tokens = (
            each.gather(0, order) for each in (values, images, tokens)
        )


class Histogram:
    """Counts of all entries together in equal bins, and quantiles to within half a bin's width.

    Counts are whole numbers: in whatever order batches and shards come, they merge exactly.

    Args:
        low: lower edge of the first bin; what lies below is counted in `below`.
        high: upper edge of the last bin; what lies there or above is counted in `above`.
        bins: how many.

    Example:
        >>> histogram = Histogram(0.0, 10.0, bins=100)
        >>> histogram.add(torch.arange(10.0)[None, :, None])
        >>> round(histogram.quantile(0.5), 1)
        4.0
    """

    below: int
    """Entries under the first bin."""
    above: int
    """Entries over the last bin."""

    def __init__(self, low: float, high: float, bins: int = 1000) -> None:
        if not (low < high and bins > 0):
            raise DataError(
                f"A histogram needs low < high and bins > 0; found {low}, {high}, {bins}."
            )
        self.low, self.high = low, high
        self.counts = torch.zeros(bins, dtype=torch.long)
        self.below = self.above = 0

    def add(self, activation: Float[Tensor, "batch token *rest"], first_image: int = 0) -> None:
        """One batch."""
        n_bins = len(self.counts)
        place = (activation.flatten().double() - self.low) / (self.high - self.low) * n_bins
        # One bin at each end for what lies outside.
        bins = place.floor().clamp(-1, n_bins).long() + 1
        found = torch.bincount(bins, minlength=n_bins + 2).cpu()
        self.counts = self.counts + found[1:-1]
        self.below += int(found[0])
        self.above += int(found[-1])

    def merge(self, other: "Histogram") -> None:
        """What another reducer has seen, as if seen here.

        Raises:
            DataError: other bins.
        """
        mine, theirs = ((each.low, each.high, len(each.counts)) for each in (self, other))
        if mine != theirs:
            raise DataError(f"Histograms merge with equal bins only; found {mine} and {theirs}.")
        self.counts = self.counts + other.counts
        self.below += other.below
        self.above += other.above

    @property
    def n(self) -> int:
        """Entries seen."""
        return self.below + int(self.counts.sum()) + self.above

    def quantile(self, share: float) -> float:
        """The least value that this share of the entries does not exceed, to half a bin's width.

        Raises:
            DataError: nothing was seen, the share is none, or the value lies outside the bins.
        """
        if not (0 <= share <= 1 and self.n):
            raise DataError(f"A quantile of {self.n} entries at {share}: give some, and 0 to 1.")
        reached = self.below + self.counts.cumsum(0) >= max(1.0, share * self.n)
        if not reached.any() or self.below >= max(1.0, share * self.n):
            raise DataError(
                f"The quantile at {share} lies outside the bins, {self.low:g} to {self.high:g}: "
                f"{self.below} of {self.n} entries are below, {self.above} above. Widen them."
            )
        centre = float(reached.long().argmax()) + 0.5
        return self.low + centre * (self.high - self.low) / len(self.counts)


@torch.no_grad()
def reduce_activations(
    model: Any,
    batches: Iterable[Tensor],
    reducers: Mapping[str, Reducer],
    rows: slice = slice(None),
) -> int:
    """Run batches and feed what hook points hold into reducers; memory stays that of one batch.

    The forward stops behind the last block that is asked for.

    Args:
        model: a hooked model; inside `model.intervened(...)` the intervened activations are read.
        batches: pixels, or token ids.
        reducers: hook point -> reducer; hook points hold [batch, token, ...].
        rows: of the token axis, such as `model.layout().patches`.

    Returns:
        How many images (or texts) were run.

    Raises:
        DataError: no batches, or a hook point that the model lacks.
        ContractError: NaN or inf; names the hook point.

    Example:
        >>> from ttreg_interp.hooked import load
        >>> model, mean = load("timm:test_vit?random"), Mean()
        >>> reduce_activations(model, [torch.zeros(2, 3, 160, 160)], {"blocks.1.mlp.hook_post": mean})
        2
        >>> mean.mean.shape == (model.cfg.d_mlp,)
        True
    """
    unknown = [name for name in reducers if name not in model.hook_dict]
    if unknown:
        raise DataError(
            f"{model.cfg.model_name} has no hook point {unknown[0]!r}. `model.hook_dict` lists all; "
            "neurons are at blocks.LAYER.mlp.hook_post."
        )
    n_images = 0
    for inputs in batches:
        hooks: list[NamedHook] = [
            (name, partial(_feed, reducer, rows, n_images)) for name, reducer in reducers.items()
        ]
        model.run_with_hooks(inputs, fwd_hooks=hooks, stop_at_layer=_stop(reducers, model))
        n_images += len(inputs)
    if not n_images:
        raise DataError("There were no images: `batches` was empty. Is it used up?")
    return n_images


def _feed(reducer: Reducer, rows: slice, first_image: int, activation: Tensor, hook: Any) -> None:
    kept = activation.detach()[:, rows]
    if not kept.isfinite().all():
        raise ContractError(f"NaN or inf at {hook.name}. Check the inputs and the dtype.")
    reducer.add(kept, first_image)


def _stop(names: Iterable[str], model: Any) -> int | None:
    """Behind the last block that is asked for; None where something behind the blocks is."""
    layers = [int(name.split(".")[1]) if name.startswith("blocks.") else None for name in names]
    behind = any(
        layer is None and not name.endswith("embed")
        for layer, name in zip(layers, names, strict=True)
    )
    known = [layer for layer in layers if layer is not None]
    return None if behind else max(known, default=-1) + 1
