"""Unsupervised object discovery: LOST, and corloc, the share of images whose object it found."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ttreg_interp.errors import DataError
from ttreg_interp.metrics._values import check_finite
from ttreg_interp.metrics.intervals import Interval, mean_interval


@dataclass(frozen=True)
class Lost:
    """What LOST leaves to choose. Sweep it on other images than those reported, and report all of it."""

    k: int = 100
    """How many patches of lowest degree may join the seed."""
    bias: float = 0.0
    """Added to every entry of the Gram matrix; needed where features of all patches share a direction."""
    normalise: bool = False
    """Give features unit length first. Without a bias this changes the mask only."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise DataError(f"k counts patches, the seed among them: 1 or more; found {self.k}.")


@dataclass(frozen=True, eq=False)
class DiscoveredObject:
    """The object that LOST finds in one image, and how it got there."""

    box: Float[Tensor, " 4"]
    """x0, y0, x1, y1 in pixels, the far edges excluded; clipped to the image."""
    mask: Bool[Tensor, "height width"]
    """Patches of the object: the connected component that holds the seed."""
    seed: tuple[int, int]
    """Row and column of the patch with the fewest positive correlations."""
    seed_set: Bool[Tensor, "height width"]
    """The seed and the patches of low degree that correlate with it."""
    degree: Int[Tensor, "height width"]
    """How many other patches each patch correlates with positively."""

    @property
    def seed_is_arbitrary(self) -> bool:
        """Whether other patches have the seed's degree, as all have where every correlation is positive."""
        return int((self.degree == self.degree.min()).sum()) > 1


def lost(
    features: Float[Tensor, "height width d_model"],
    patch_size: int,
    image_size: tuple[int, int] | None = None,
    options: Lost = Lost(),  # noqa: B008 (frozen)
) -> DiscoveredObject:
    """Find one object by the patches that resemble few others.

    With A = F F^T + bias:

    1. degree_p = #{q != p: A_pq > 0}; the seed is the patch of lowest degree.
    2. S = {p among the k patches of lowest degree: A_seed,p > 0}.
    3. mask_q = [sum_{s in S} A_sq > 0], negative correlations counting against a patch.
    4. The object is the 4-connected component of the mask that holds the seed, boxed.

    Of equal degrees the lowest raster index (row by row) comes first. If all correlations are
    positive every patch has the same degree, the seed is the first patch and the box the whole
    image. If none is (a bias below the squared norms), the object is the first patch alone.

    Args:
        features: keys, queries or values of the patches, heads side by side; no [CLS], no register.
        patch_size: pixels a side.
        image_size: height and width in pixels, to clip a box that reaches into padding.
        options: k, bias and normalisation.

    Returns:
        The object; seed, degree and mask in patches, box in pixels.

    Raises:
        DataError: no patches, NaN, or an image that the grid does not cover.

    Source:
        Simeoni et al., arXiv 2109.14279, section 3; bias and normalisation as in arXiv 2506.08010, A.14.

    Example:
        >>> features = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [-0.1, 1.0]]])  # background, object
        >>> lost(features, patch_size=16).box.tolist()
        [32.0, 0.0, 48.0, 16.0]
    """
    check_finite(features, "features")
    height, width, _ = features.shape
    rows, columns = image_size or (height * patch_size, width * patch_size)
    if not (0 < rows <= height * patch_size and 0 < columns <= width * patch_size):
        raise DataError(
            f"An image of {rows} x {columns} pixels is not covered by {height} x {width} patches of "
            f"{patch_size} pixels; give height and width of the image before padding."
        )
    gram = _gram(features, options)
    degree = (gram > 0).sum(dim=1) - (gram.diagonal() > 0).long()
    order = degree.argsort(stable=True)
    seed = int(order[0])
    seed_set = torch.zeros_like(degree, dtype=torch.bool)
    seed_set[order[: options.k]] = True
    seed_set &= gram[seed] > 0
    positive = gram[seed_set].sum(dim=0) > 0
    positive[seed] = True  # so already unless nothing correlates with the seed, itself included
    position = divmod(seed, width)
    mask = _component(positive.view(height, width), position)
    box = _box(mask) * patch_size
    limit = box.new_tensor([columns, rows, columns, rows])
    return DiscoveredObject(
        box=torch.minimum(box, limit),
        mask=mask,
        seed=position,
        seed_set=seed_set.view(height, width),
        degree=degree.view(height, width),
    )


def correctly_localised(
    boxes: Float[Tensor, "batch 4"],
    ground_truth: Sequence[Float[Tensor, "_ 4"]],
    threshold: float = 0.5,
) -> Bool[Tensor, " batch"]:
    """Whether an image's box overlaps one of its annotated objects well enough: max IoU >= threshold.

    Args:
        boxes: x0, y0, x1, y1 in pixels, far edges excluded.
        ground_truth: for each image its objects' boxes, likewise. Annotations that count pixels
            from 1 and include the last (PASCAL VOC) need x0 and y0 lowered by 1.
        threshold: least intersection over union.

    Returns:
        True where an object was found.

    Raises:
        DataError: other images than annotations, an image without objects, or a box without area.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        >>> correctly_localised(boxes, [torch.tensor([[0.0, 0.0, 4.0, 2.0], [9.0, 9.0, 12.0, 12.0]])])
        tensor([True])
    """
    from torchvision.ops import box_iou

    if len(boxes) != len(ground_truth):
        raise DataError(
            f"Found {len(boxes)} boxes and annotations of {len(ground_truth)} images; "
            "give the objects of each image."
        )
    _check_boxes(boxes, "boxes")
    found = []
    for image, (box, objects) in enumerate(zip(boxes, ground_truth, strict=True)):
        _check_boxes(objects, f"ground truth of image {image}")
        overlap = box_iou(box[None].double(), objects.to(box.device).double())
        found.append((overlap >= threshold).any())
    return torch.stack(found)


def corloc(
    boxes: Float[Tensor, "batch 4"],
    ground_truth: Sequence[Float[Tensor, "_ 4"]],
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Correct localisation: share of images whose box has IoU >= 0.5 with an annotated object.

    Args:
        boxes: one per image, as in `correctly_localised`.
        ground_truth: for each image its objects' boxes.
        seed: of the bootstrap over images.
        level: confidence level.

    Returns:
        The share with its interval.

    Raises:
        DataError: as `correctly_localised`, or fewer than two images.

    Source:
        Deselaers et al. 2012; arXiv 2109.14279, section 4.1.

    Example:
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]] * 4)
        >>> corloc(boxes, [boxes[:1]] * 3 + [boxes[:1] + 4]).estimate
        0.75
    """
    return mean_interval(correctly_localised(boxes, ground_truth), seed=seed, level=level)


def _gram(
    features: Float[Tensor, "height width d_model"], options: Lost
) -> Float[Tensor, "token key"]:
    """Correlations of all pairs of patches; in float64, as only their signs decide."""
    rows = features.flatten(end_dim=1).double()
    if options.normalise:
        rows = torch.nn.functional.normalize(rows, dim=1)
    return rows @ rows.T + options.bias


def _component(
    mask: Bool[Tensor, "height width"], position: tuple[int, int]
) -> Bool[Tensor, "height width"]:
    """The 4-connected component of the mask at a position."""
    from scipy.ndimage import label

    components = torch.zeros(mask.shape, dtype=torch.int32)
    label(mask.cpu().numpy(), output=components.numpy())
    return (components == components[position]).to(mask.device)


def _box(mask: Bool[Tensor, "height width"]) -> Float[Tensor, " 4"]:
    """The mask's bounding box, in patches."""
    rows, columns = mask.nonzero(as_tuple=True)
    edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return torch.stack(edges).float()


def _check_boxes(boxes: Float[Tensor, "_ 4"], name: str) -> None:
    check_finite(boxes, name)
    empty = (boxes[:, 2:] <= boxes[:, :2]).any(dim=1)
    if empty.any():
        raise DataError(
            f"{name} has a box without area, {boxes[empty][0].tolist()}; boxes are x0, y0, x1, y1."
        )
