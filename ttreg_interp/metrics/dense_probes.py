"""Linear probes on frozen patch features: semantic segmentation and depth.

One linear layer on every patch, its output enlarged bilinearly to the pixels. They follow the
linear heads of DINOv2 (arXiv 2304.07193, section 7.4) on given features, so without image
augmentation or sliding windows, and depth without the gradient loss: arms compare with each other,
not with published figures. Features are read a minibatch at a time, so that memory does not grow with
the images.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from ttreg_interp.errors import DataError
from ttreg_interp.metrics._values import check_classes, check_finite
from ttreg_interp.metrics.intervals import Interval, mean_interval
from ttreg_interp.metrics.rows import Rows, chosen, moments, pieces
from ttreg_interp.metrics.segmentation import Overlap, mean_miou, overlap

Loss = Callable[[Tensor, Tensor], Tensor]
"""From the head's output [batch, output, height, width] and the target to a number."""


@dataclass(frozen=True, eq=False)
class LabelledPatches:
    """Frozen features of the patches of images, with what is to be read out at each pixel."""

    features: Float[Tensor, "batch height width d_model"] | Rows
    """On the patch grid; put [CLS] alongside each patch if the head shall see it."""
    target: Int[Tensor, "_ rows columns"] | Float[Tensor, "_ rows columns"] | Rows
    """Class, or depth in metres, of each pixel; as many images as features."""

    def __post_init__(self) -> None:
        for table, name in ((self.features, "features"), (self.target, "target")):
            if isinstance(table, Tensor):
                check_finite(table, name)
        if len(self.features) != len(self.target):
            raise DataError(
                f"Found features of {len(self.features)} images and targets of {len(self.target)}; "
                "give one target per image."
            )

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and targets of so many images at a time, in order."""
        for places in torch.arange(len(self.target)).split(size):
            yield self.features[places], self.target[places]

    def __getitem__(self, images: Int[Tensor, " batch"]) -> "LabelledPatches":
        return LabelledPatches(chosen(self.features, images), chosen(self.target, images))


@dataclass(frozen=True)
class DenseProbe:
    """How a linear head is trained: AdamW, cosine schedule."""

    learning_rate: float = 1e-3
    """At the start; falls to 0 along a half cosine."""
    weight_decay: float = 1e-2
    """Of AdamW."""
    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 16
    """Images per step."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One head per seed, which draws its start and the order of the images."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or not self.seeds:
            raise DataError(
                "A probe needs 1 epoch, 1 image a batch and 1 seed or more; found "
                f"{self.epochs}, {self.batch_size} and {self.seeds}."
            )


@dataclass(frozen=True)
class DepthHead:
    """How the linear head's output becomes a depth."""

    kind: Literal["bins", "regression"] = "bins"
    """"bins": mean of bin centres weighted by relu(logit) + 0.1, as DINOv2; "regression": one output."""
    bins: int = 256
    """Bins, evenly spaced from min_depth to max_depth."""
    min_depth: float = 1e-3
    """Metres; pixels at or below hold no depth."""
    max_depth: float = 10.0
    """Metres; pixels beyond hold no depth."""

    @property
    def outputs(self) -> int:
        """Width of the linear layer."""
        return self.bins if self.kind == "bins" else 1

    def depth(
        self, output: Float[Tensor, "batch output height width"]
    ) -> Float[Tensor, "batch height width"]:
        """Depth in metres."""
        if self.kind == "regression":
            return self.min_depth + torch.nn.functional.softplus(output[:, 0])
        weights = output.relu() + 0.1
        centres = torch.linspace(self.min_depth, self.max_depth, self.bins).to(output)
        return torch.einsum("bohw, o -> bhw", weights / weights.sum(dim=1, keepdim=True), centres)

    def holds_depth(self, target: Tensor) -> Tensor:
        """Where the target is a depth in range."""
        return (target > self.min_depth) & (target <= self.max_depth)


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """What a segmentation probe found on the test images."""

    overlaps: tuple[Overlap, ...]
    """Pixel counts by seed."""
    probe: DenseProbe
    """Configuration."""

    @property
    def miou(self) -> Interval:
        """Mean over seeds, with the interval over test images."""
        return mean_miou(self.overlaps)

    @property
    def per_seed(self) -> tuple[float, ...]:
        """mIoU of each seed."""
        return tuple(run.iou.nanmean().item() for run in self.overlaps)


@dataclass(frozen=True, eq=False)
class DepthResult:
    """What a depth probe found on the test images."""

    rmse_per_image: Float[Tensor, "seed batch"]
    """Root mean square error of each test image, in metres."""
    head: DepthHead
    """Configuration of the output."""
    probe: DenseProbe
    """Configuration of the training."""

    @property
    def rmse(self) -> Interval:
        """Mean over seeds and images, with the interval over test images."""
        return mean_interval(self.rmse_per_image.mean(dim=0))

    @property
    def per_seed(self) -> tuple[float, ...]:
        """Mean over images for each seed."""
        return tuple(self.rmse_per_image.mean(dim=1).tolist())


@torch.inference_mode(False)
@torch.enable_grad()
def segmentation_probe(
    train: LabelledPatches,
    test: LabelledPatches,
    classes: int,
    probe: DenseProbe = DenseProbe(),  # noqa: B008 (frozen)
    ignore: int = 255,
) -> SegmentationResult:
    """Fit a linear layer from patch features to classes, and segment the test images.

    Args:
        train: patches with the class of each pixel.
        test: likewise.
        classes: how many there are.
        probe: how to train.
        ignore: class id of pixels to leave out.

    Returns:
        Overlaps by seed.

    Raises:
        DataError: ids that are no class.

    Source:
        arXiv 2304.07193, section 7.4 ("lin."); arXiv 2506.08010, tables 2 and 13.

    Example:
        >>> labels = torch.arange(2).repeat(6, 4, 2)
        >>> data = LabelledPatches(torch.nn.functional.one_hot(labels).float(), labels)
        >>> segmentation_probe(data, data, 2, DenseProbe(learning_rate=0.1, seeds=(0,))).per_seed
        (1.0,)
    """
    for places in pieces(train.target):
        ids = train.target[places]
        check_classes(ids[ids != ignore], classes, "training target")

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(_enlarge(output, target), target.long(), ignore_index=ignore)

    runs = []
    for seed in probe.seeds:
        predict = _train(train, classes, loss, probe, seed)
        parts = [
            overlap(_enlarge(predict(features), target).argmax(dim=1), target, classes, ignore)
            for features, target in test.batches(probe.batch_size)
        ]
        runs.append(reduce(add, parts))
    return SegmentationResult(tuple(runs), probe)


@torch.inference_mode(False)
@torch.enable_grad()
def depth_probe(
    train: LabelledPatches,
    test: LabelledPatches,
    head: DepthHead = DepthHead(),  # noqa: B008 (frozen)
    probe: DenseProbe = DenseProbe(learning_rate=5e-3),  # noqa: B008 (frozen)
) -> DepthResult:
    """Fit a linear layer from patch features to depth, and measure its error on the test images.

    It minimises the scale-invariant loss sqrt(var g + 0.15 mean(g)^2) of the log ratios
    g = ln(d + 0.001) - ln(d* + 0.001). The error of an image is the root mean square over its
    pixels in range, the prediction clipped to the range.

    Args:
        train: patches with the depth of each pixel.
        test: likewise.
        head: how outputs become depths.
        probe: how to train.

    Returns:
        Errors by seed and image.

    Raises:
        DataError: an image without depth in range.

    Source:
        SigLoss and bins of AdaBins, arXiv 2011.14141, as DINOv2 uses them (arXiv 2304.07193,
        section 7.4); arXiv 2506.08010, tables 2, 9 and 13.

    Example:
        >>> depth = torch.linspace(1, 2, 96).view(6, 4, 4)
        >>> data = LabelledPatches(depth[..., None], depth)
        >>> depth_probe(data, data, DepthHead("regression"), DenseProbe(0.1, epochs=50)).rmse.estimate < 0.1
        True
    """

    def loss(output: Tensor, target: Tensor) -> Tensor:
        kept = head.holds_depth(target)
        ratios = (_depth_of_pixels(head, output, target)[kept] + 1e-3).log()
        ratios = ratios - (target[kept] + 1e-3).log()
        return (ratios.var() + 0.15 * ratios.mean().square()).sqrt()

    for name, data in (("training", train), ("test", test)):
        for places in pieces(data.target):
            empty = ~head.holds_depth(data.target[places]).flatten(1).any(dim=1)
            if empty.any():
                raise DataError(
                    f"No pixel of {name} image {int(places[empty.nonzero()[0]])} holds a depth in "
                    f"({head.min_depth}, {head.max_depth}] m; leave the image out."
                )
    runs = []
    for seed in probe.seeds:
        predict = _train(train, head.outputs, loss, probe, seed)
        batches = test.batches(probe.batch_size)
        runs.append(torch.cat([_rmse(head, predict(x), target) for x, target in batches]))
    return DepthResult(torch.stack(runs), head, probe)


def _train(
    train: LabelledPatches, outputs: int, loss: Loss, probe: DenseProbe, seed: int
) -> Callable[[Tensor], Tensor]:
    """A trained map from features [batch, height, width, d_model] to [batch, output, height, width]."""
    features = train.features
    generator = torch.Generator().manual_seed(seed)
    spread, centre = moments(features)
    start = 0.01 * torch.randn(outputs, features.shape[-1], generator=generator)
    weight = start.to(features.device).requires_grad_()
    bias = torch.zeros(outputs, device=features.device, requires_grad=True)

    def predict(images: Tensor) -> Tensor:
        standardised = ((images - centre) / spread).to(weight.dtype)
        return torch.nn.functional.linear(standardised, weight, bias).movedim(-1, 1)

    optimiser = torch.optim.AdamW(
        [weight, bias], lr=probe.learning_rate, weight_decay=probe.weight_decay
    )
    steps = probe.epochs * -(-len(features) // probe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps)
    for _ in range(probe.epochs):
        order = torch.randperm(len(features), generator=generator)
        for images in order.split(probe.batch_size):
            optimiser.zero_grad()
            loss(predict(features[images]), train.target[images]).backward()
            optimiser.step()
            schedule.step()
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    if not torch.isfinite(weight).all():
        raise DataError(
            f"The probe of seed {seed} diverged: its weights hold NaN or inf. Lower the learning rate "
            f"{probe.learning_rate}, or look for batches with hardly a labelled pixel."
        )
    return predict


def _enlarge(output: Tensor, target: Tensor) -> Tensor:
    return interpolate(output, target.shape[-2:], mode="bilinear", align_corners=False)


def _depth_of_pixels(head: DepthHead, output: Tensor, target: Tensor) -> Tensor:
    """Depth on a grid four times as fine as the patches (as DINOv2), then at the pixels."""
    finer = interpolate(output, scale_factor=4, mode="bilinear", align_corners=False)
    return _enlarge(head.depth(finer)[:, None], target)[:, 0]


def _rmse(head: DepthHead, output: Tensor, target: Tensor) -> Float[Tensor, " batch"]:
    depth = _depth_of_pixels(head, output, target).clamp(head.min_depth, head.max_depth)
    kept = head.holds_depth(target)
    squares = torch.where(kept, (depth.double() - target).square(), 0.0)
    return (squares.sum(dim=(1, 2)) / kept.sum(dim=(1, 2))).sqrt()
