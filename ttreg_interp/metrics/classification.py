"""Classification without training: top-k, zero-shot from text, nearest neighbours.

Results are per image, so that two arms can be compared on the same images (`intervals.mcnemar`,
`intervals.paired_difference`); `intervals.mean_interval(correct)` is the accuracy.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from ttreg_interp.errors import DataError
from ttreg_interp.metrics._values import check_classes, check_finite
from ttreg_interp.metrics.rows import Rows, chosen, pieces

_AT_ONCE = 1024
"""Images whose nearest neighbours are looked for together."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """Frozen features of images with their classes."""

    features: Float[Tensor, "batch d_model"] | Rows
    """One vector per image; in memory, or on disk."""
    labels: Int[Tensor, " _"]
    """Class of each image, counted from 0; as many as features."""

    def __post_init__(self) -> None:
        if isinstance(self.features, Tensor):
            check_finite(self.features, "features")
        if len(self.features) != len(self.labels):
            raise DataError(
                f"Found {len(self.features)} features and {len(self.labels)} labels; "
                "give one label per image."
            )
        if (self.labels < 0).any():
            raise DataError(f"Classes count from 0; found label {int(self.labels.min())}.")

    @property
    def classes(self) -> int:
        """One more than the highest label."""
        return int(self.labels.max()) + 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, images: Int[Tensor, " batch"]) -> "Labelled":
        return Labelled(chosen(self.features, images), self.labels[images])


def topk_correct(
    logits: Float[Tensor, "batch class"], labels: Int[Tensor, " batch"], k: int = 1
) -> Bool[Tensor, " batch"]:
    """Whether an image's class is among its k highest logits.

    Of equal logits the lowest class index comes first, so that a model whose logits are all equal
    is right by chance only.

    Args:
        logits: or any scores that are higher for likelier classes, such as votes.
        labels: class of each image.
        k: how many classes count.

    Returns:
        True where the class is among the k.

    Raises:
        DataError: no images, NaN, labels that are no class, or k outside 1 .. classes.

    Example:
        >>> logits = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]])
        >>> topk_correct(logits, torch.tensor([2, 0]), k=1).tolist()
        [False, True]
        >>> topk_correct(logits, torch.tensor([2, 0]), k=2).tolist()
        [True, True]
    """
    check_finite(logits, "logits")
    classes = logits.shape[1]
    if not 1 <= k <= classes:
        raise DataError(f"k lies in 1 .. {classes} (the classes); found {k}.")
    check_classes(labels, classes, "labels")
    own = logits.gather(1, labels[:, None].long())
    earlier = torch.arange(classes, device=logits.device) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(dim=1) < k


def zero_shot_classifier(
    text: Sequence[Float[Tensor, "_ output"]],
) -> Float[Tensor, "class output"]:
    """Class directions from text: the mean of a class's unit embeddings, made a unit vector again.

    Args:
        text: for each class, the embeddings of its prompts (one per template).

    Returns:
        One unit vector per class, in the dtype of the text.

    Raises:
        DataError: no class, a class without prompts, or NaN.

    Source:
        Radford et al., arXiv 2103.00020, section 3.1.4 (prompt ensembling).

    Example:
        >>> zero_shot_classifier([torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 9.0]])])
        tensor([[1., 0.],
                [0., 1.]])
    """
    if not text:
        raise DataError("Found no class; give the prompt embeddings of each class.")
    for place, embeddings in enumerate(text):
        check_finite(embeddings, f"text of class {place}")
    means = [normalize(embeddings, dim=-1).mean(dim=0) for embeddings in text]
    return normalize(torch.stack(means), dim=-1)


def zero_shot_logits(
    images: Float[Tensor, "batch output"],
    classifier: Float[Tensor, "class output"],
    scale: float = 100.0,
) -> Float[Tensor, "batch class"]:
    """Scaled cosine of each image with each class direction: scale * x . w_c / ||x||.

    Args:
        images: image embeddings, normalised or not.
        classifier: unit class directions of `zero_shot_classifier`.
        scale: the model's logit scale; matters for probabilities, not for accuracy.

    Returns:
        Logits.

    Raises:
        DataError: no images, or NaN.

    Example:
        >>> zero_shot_logits(torch.tensor([[3.0, 4.0]]), torch.eye(2), scale=1.0).tolist()
        [[0.6..., 0.8...]]
    """
    check_finite(images, "images")
    return scale * normalize(images, dim=-1) @ classifier.to(images).T


def knn_votes(
    bank: Labelled,
    queries: Float[Tensor, "batch d_model"] | Rows,
    k: int = 20,
    temperature: float = 0.07,
) -> Float[Tensor, "batch class"]:
    """Votes of the k nearest images of a bank: sum over them of [label = c] exp(cosine / temperature).

    Votes of one image are in units of its nearest neighbour's. `topk_correct(votes, labels)` gives the accuracy.

    Args:
        bank: the training images.
        queries: features of the images to classify.
        k: neighbours; DINO reports the best of 10, 20, 100 and 200, which is a choice on the test set.
        temperature: smaller lets the nearest neighbours decide.

    Returns:
        Votes per class, in float64; the classes are those of the bank.

    Raises:
        DataError: no images, NaN, k outside 1 .. bank size, or a temperature that is not positive.

    Source:
        Wu et al., arXiv 1805.01978, section 3.4; protocol of DINO, arXiv 2104.14294.

    Example:
        >>> bank = Labelled(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]))
        >>> knn_votes(bank, torch.tensor([[2.0, 1.0]]), k=1).argmax(dim=1).tolist()
        [0]
    """
    if isinstance(queries, Tensor):
        check_finite(queries, "queries")
    if not 1 <= k <= len(bank):
        raise DataError(f"k lies in 1 .. {len(bank)} (the images of the bank); found {k}.")
    if temperature <= 0:
        raise DataError(f"The temperature is positive; found {temperature}.")
    votes = []
    for places in torch.arange(len(queries)).split(_AT_ONCE):
        values, indices = _nearest(bank, normalize(queries[places].double(), dim=1), k)
        labels = bank.labels.to(indices.device)[indices].long()
        empty = values.new_zeros(len(places), bank.classes)
        # relative to the nearest, which a small temperature would otherwise send to infinity
        closeness = values - values[:, :1]
        votes.append(empty.scatter_add(1, labels, (closeness / temperature).exp()))
    return torch.cat(votes)


def _nearest(bank: Labelled, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine and place of the k nearest images of the bank, [query, k]; the bank piece by piece."""
    values, indices = queries.new_zeros(len(queries), 0), None
    for places in pieces(bank.features):
        piece = normalize(bank.features[places].double(), dim=1)
        there = places.to(queries.device).expand(len(queries), -1)
        values = torch.cat([values, queries @ piece.T], dim=1)
        indices = there if indices is None else torch.cat([indices, there], dim=1)
        values, best = values.topk(min(k, values.shape[1]), dim=1)
        indices = indices.gather(1, best)
    assert indices is not None  # a bank holds an image or more
    return values, indices
