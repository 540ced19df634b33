"""Scores of neurons: how much each one has to do with the outliers. One pass gives all of them.

Only sums over images are kept, five numbers a neuron; memory does not grow with the images.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ttreg_interp.discovery.config import SCORES
from ttreg_interp.discovery.exact import ExactSums
from ttreg_interp.discovery.observe import Observation, Observer, draw_ordinary
from ttreg_interp.discovery.priors import tally, tally_content
from ttreg_interp.discovery.stream import Batch
from ttreg_interp.errors import DataError

STATISTICS = ("abs", "signed", "ordinary", "square", "projection")
GROUP = 4
"""Batches whose outliers are scored together: every layer's weights are read once for all of them.
A shard takes whole groups, so that what is computed does not depend on the sharding."""


@dataclass(frozen=True)
class NeuronScores:
    """All scores of all searched neurons; means over the images that have outliers."""

    statistics: dict[str, Float[Tensor, "layer neuron"]]
    """Means of |a| and a at outliers, a at ordinary tokens, a^2 over both, and the projection."""
    layers: range
    """The layers of the first axis."""
    row_norms: Float[Tensor, "layer neuron"]
    """Norms of the neurons' output rows."""
    direction: Float[Tensor, " d_model"]
    """Mean unit vector from the ordinary tokens to the outliers."""
    excess: float
    """Mean distance of outliers from the ordinary tokens, in units of the residual stream."""
    n_images: int
    """Images with outliers."""

    def score(self, name: str) -> Float[Tensor, "layer neuron"]:
        """One score of every neuron.

            abs           mean_t |a_t|                                   t: outliers of an image
            signed        mean_t a_t
            contrast      (mean_t a_t - mean_o a_o) / std of both        o: ordinary patches
            contribution  abs x |W_out|
            projection    mean_t (a_t - mean_o a_o) (W_out . r_t),  r_t = (x_t - mean_o x_o) / |...|

        Means run over the outliers of an image, then over images. Projections of everything that
        writes to the residual stream add up to the outliers' distance from ordinary tokens, so a
        projection over `excess` is the share of an outlier that the neuron wrote.

        Raises:
            DataError: an unknown score.

        Source:
            arXiv 2506.08010, Algorithm 1 (signed); the authors' code (abs).
        """
        mean = self.statistics
        if name == "contribution":
            return mean["abs"] * self.row_norms
        if name == "contrast":
            centre = (mean["signed"] + mean["ordinary"]) / 2
            variance = (mean["square"] - centre.square()).clamp_min(1e-12)
            return (mean["signed"] - mean["ordinary"]) / variance.sqrt()
        if name not in mean:
            raise DataError(f"The score is one of {', '.join(SCORES)}; found {name!r}.")
        return mean[name]

    def ranking(self, name: str, layers: range | None = None) -> list[tuple[int, int, float]]:
        """(layer, neuron, score) of all searched neurons, best first; ties by layer and neuron."""
        scores = self.score(name)
        searched = [i for i, layer in enumerate(self.layers) if layers is None or layer in layers]
        flat = scores[searched].flatten()
        order = flat.argsort(descending=True, stable=True)
        n_neurons = scores.shape[1]
        return [
            (self.layers[searched[place // n_neurons]], place % n_neurons, value)
            for place, value in zip(order.tolist(), flat[order].tolist(), strict=True)
        ]

    def layer_share(self) -> Float[Tensor, " layer"]:
        """Share of the outliers' excess that the neurons of each layer wrote."""
        return self.statistics["projection"].sum(dim=1) / max(self.excess, 1e-12)


def score_neurons(observer: Observer, batches: Iterable[Batch], seed: int = 0) -> ExactSums:
    """Run the images and add up what the scores are made of.

    Args:
        observer: model, detection and layers.
        batches: the images.
        seed: of the draw of ordinary tokens.

    Returns:
        Sums for `read_scores` and `read_priors`.

    Raises:
        ContractError: NaN or inf; names the layer.
    """
    sums = ExactSums()
    for _, group in grouped(batches):
        add_group(sums, observer, group, seed)
    return sums


def grouped(batches: Iterable[Batch]) -> Iterator[tuple[int, Iterator[Batch]]]:
    """Groups of `GROUP` batches that follow each other, by number; fewer if some are not there."""
    return groupby(batches, key=lambda batch: batch.number // GROUP)


def add_group(sums: ExactSums, observer: Observer, batches: Iterable[Batch], seed: int) -> None:
    """Run batches one by one and add what they show to the sums."""
    found = [_chosen(sums, observer, batch, seed) for batch in batches]
    chosen = [rows for rows in found if rows is not None]
    if not chosen:
        return
    rows = ChosenRows.joined(chosen)
    tokens = rows.tokens
    sums.add("excess", tokens.excess().sum())
    sums.add("direction", (tokens.share @ tokens.away).sum(dim=0))
    layers = [rows.statistics(observer.model.blocks[layer].mlp, layer) for layer in observer.layers]
    for name in STATISTICS:
        sums.add(name, torch.stack([layer[name].sum(dim=0) for layer in layers]))


def _chosen(sums: ExactSums, observer: Observer, batch: Batch, seed: int) -> "ChosenRows | None":
    """Run one batch, count its outliers, and keep what the scores need of it."""
    seen = observer(batch)
    layout = observer.model.layout(batch.pixels.shape).of_length(seen.outliers.shape[1])
    tally(sums, seen.outliers, layout, seen.cls_above)
    tally_content(sums, observer.model, batch, seen.outliers[:, layout.patches])
    some = seen.outliers.any(dim=1)
    sums.count("images", some.sum())
    if not len(observer.layers) or not some.any():
        return None
    ordinary = draw_ordinary(seen.outliers, seen.layout, batch.index, seed)
    return ChosenRows.of(seen, ChosenTokens.of(seen, ordinary))


@dataclass(frozen=True)
class ChosenTokens:
    """The outliers of a batch and the ordinary tokens they are compared with, as flat rows."""

    outlier_at: tuple[Int[Tensor, " outlier"], Int[Tensor, " outlier"]]
    """Image and token of each outlier."""
    ordinary_at: tuple[Int[Tensor, " ordinary"], Int[Tensor, " ordinary"]]
    """Image and token of each ordinary one."""
    share: Float[Tensor, "batch outlier"]
    """Weights that take the mean over the outliers of each image."""
    ordinary_share: Float[Tensor, "batch ordinary"]
    """The same over ordinary tokens."""
    away: Float[Tensor, "outlier d_model"]
    """Unit vectors from the ordinary tokens of the image to the outlier."""
    distance: Float[Tensor, " outlier"]
    """How far that is."""

    @classmethod
    def of(cls, seen: Observation, ordinary: Bool[Tensor, "batch token"]) -> "ChosenTokens":
        """The rows of a batch, with the ordinary tokens of images that have outliers."""
        ordinary = ordinary & seen.outliers.any(dim=1, keepdim=True)
        at, ordinary_at = _places(seen.outliers), _places(ordinary)
        share, ordinary_share = (
            _mean_weights(seen.outliers, at),
            _mean_weights(ordinary, ordinary_at),
        )
        resid = seen.resid.float()
        away = resid[at] - (ordinary_share @ resid[ordinary_at])[at[0]]
        distance = away.norm(dim=-1)
        away = away / distance.clamp_min(1e-12)[:, None]
        return cls(at, ordinary_at, share, ordinary_share, away, distance)

    @classmethod
    def joined(cls, parts: "Sequence[ChosenTokens]") -> "ChosenTokens":
        """Those of several batches, their images numbered on."""
        firsts = [0, *accumulate(len(part.share) for part in parts)]

        def places(name: str) -> tuple[Tensor, Tensor]:
            pairs = [getattr(part, name) for part in parts]
            images = [image + first for (image, _), first in zip(pairs, firsts, strict=False)]
            return torch.cat(images), torch.cat([token for _, token in pairs])

        return cls(
            outlier_at=places("outlier_at"),
            ordinary_at=places("ordinary_at"),
            share=torch.block_diag(*(part.share for part in parts)),
            ordinary_share=torch.block_diag(*(part.ordinary_share for part in parts)),
            away=torch.cat([part.away for part in parts]),
            distance=torch.cat([part.distance for part in parts]),
        )

    def excess(self) -> Float[Tensor, " batch"]:
        """Mean distance of each image's outliers from its ordinary tokens."""
        return self.share @ self.distance


def _places(mask: Tensor) -> tuple[Tensor, Tensor]:
    image, token = mask.nonzero(as_tuple=True)
    return image, token


def _mean_weights(mask: Tensor, at: tuple[Tensor, Tensor]) -> Float[Tensor, "batch chosen"]:
    images = torch.arange(len(mask), device=mask.device)
    count = mask.sum(dim=1).clamp_min(1)
    return (at[0][None] == images[:, None]) / count[:, None].float()


@dataclass(frozen=True)
class ChosenRows:
    """What the MLPs of the searched layers read at the chosen tokens."""

    tokens: ChosenTokens
    """Which ones."""
    outliers: dict[int, Float[Tensor, "outlier d_model"]]
    """At the outliers, by layer."""
    ordinary: dict[int, Float[Tensor, "ordinary d_model"]]
    """At the ordinary tokens."""
    quiet: dict[int, Bool[Tensor, "batch neuron"]]
    """Neurons that pass the sparsity filter; empty without that filter."""

    @classmethod
    def of(cls, seen: Observation, tokens: ChosenTokens) -> "ChosenRows":
        """Those of one batch."""
        outliers, ordinary = (
            {layer: inputs[at] for layer, inputs in seen.inputs.items()}
            for at in (tokens.outlier_at, tokens.ordinary_at)
        )
        return cls(tokens, outliers, ordinary, seen.quiet)

    @classmethod
    def joined(cls, parts: "Sequence[ChosenRows]") -> "ChosenRows":
        """Those of several batches."""

        def cat(name: str) -> dict[int, Tensor]:
            layers = [getattr(part, name) for part in parts]
            return {layer: torch.cat([each[layer] for each in layers]) for layer in layers[0]}

        tokens = ChosenTokens.joined([part.tokens for part in parts])
        return cls(tokens, cat("outliers"), cat("ordinary"), cat("quiet"))

    def statistics(self, mlp: Any, layer: int) -> dict[str, Float[Tensor, "batch neuron"]]:
        """The statistics of one layer's neurons for every image, zero where it has no outliers."""
        tokens = self.tokens
        rows = torch.cat((self.outliers[layer], self.ordinary[layer]))  # one product for both
        post = mlp.neurons(rows[None])[0].float()
        on, off = post.split([len(tokens.distance), len(rows) - len(tokens.distance)])
        ordinary = tokens.ordinary_share @ off
        along = tokens.away @ mlp.W_out.T.float()
        beyond = on - ordinary[tokens.outlier_at[0]]
        square = (tokens.share @ on.square() + tokens.ordinary_share @ off.square()) / 2
        found = {
            "abs": tokens.share @ on.abs(),
            "signed": tokens.share @ on,
            "ordinary": ordinary,
            "square": square,
            "projection": tokens.share @ (beyond * along),
        }
        if layer in self.quiet:
            found = {name: value * self.quiet[layer] for name, value in found.items()}
        return found


def layer_statistics(
    mlp: Any, seen: Observation, tokens: ChosenTokens, layer: int
) -> dict[str, Float[Tensor, "batch neuron"]]:
    """The statistics of one layer's neurons for every image of one batch."""
    return ChosenRows.of(seen, tokens).statistics(mlp, layer)


def read_scores(model: Any, layers: range, sums: ExactSums) -> NeuronScores:
    """Means over images, from the sums of `score_neurons`.

    Raises:
        DataError: no image had an outlier, so there is no mean.
    """
    n_images = sums.whole("images")
    if not n_images:
        raise DataError(
            "No image has an outlier at this threshold, so no neuron has a score. Lower the "
            "threshold or give other images; find_outliers shows the norms."
        )
    direction = sums["direction"] / n_images
    return NeuronScores(
        statistics={name: sums[name] / n_images for name in STATISTICS},
        layers=layers,
        row_norms=torch.stack(
            [model.blocks[i].mlp.W_out.detach().cpu().double().norm(dim=1) for i in layers]
        ),
        direction=direction / direction.norm().clamp_min(1e-12),
        excess=float(sums["excess"]) / n_images,
        n_images=n_images,
    )
