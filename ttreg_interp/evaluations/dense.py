"""Probes of frozen patch features: semantic segmentation and depth."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from PIL import Image
from torch import Tensor

from ttreg_interp.data.annotated import Annotated, Depth, Mask
from ttreg_interp.data.masks import nearest
from ttreg_interp.errors import DataError
from ttreg_interp.evaluations.arms import Run
from ttreg_interp.evaluations.base import Evaluation, Kept, Prepared, Scored
from ttreg_interp.evaluations.features import dense
from ttreg_interp.evaluations.folds import (
    checked_or_crossed,
    folds,
    others,
    over_seeds,
    probe_device,
)
from ttreg_interp.evaluations.geometry import fitted
from ttreg_interp.evaluations.maps import listed
from ttreg_interp.evaluations.records import Records
from ttreg_interp.hooked import HookedViT
from ttreg_interp.metrics.dense_probes import (
    DenseProbe,
    DepthHead,
    LabelledPatches,
    depth_probe,
    segmentation_probe,
)
from ttreg_interp.metrics.segmentation import MeanIoU, Overlap
from ttreg_interp.metrics.set_scores import Mean, MeanOfRuns

IGNORE = -1
"""The id of pixels without a class, as the probes take it."""
StoredAs: TypeAlias = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class OfPatches(Evaluation):
    """A protocol on the frozen patch features of whole images, squeezed to the model's size.

    Features lie on disk and are read a minibatch at a time. An image without a labelled pixel is left
    out and counted.
    """

    probe: DenseProbe = DenseProbe()
    """How the linear head is trained, and its seeds."""
    folds: int = 4
    """Parts of cross-validation, where there is no training set."""
    stored_as: StoredAs = "float32"
    """The dtype of features on disk; 16 bits halve the file."""

    def check(self, runs: Sequence[Run], data: Mapping[str, Annotated[Any]]) -> None:
        """See Evaluation."""
        super().check(runs, checked_or_crossed(data))

    def prepare(self, model: HookedViT, image: Image.Image, target: Any) -> Prepared:
        """See Evaluation."""
        return Prepared(fitted(model, image, "resize"), self._target(target, model.image_size))

    def measure(self, run: Run, pixels: Tensor, targets: list[Any], context: Any) -> Kept:
        """See Evaluation."""
        features = dense(run.model, run.intervention, pixels)
        target = torch.stack(targets)
        return {
            "features": features.to(getattr(torch, self.stored_as)),
            "target": target,
            "usable": self._labelled(target).flatten(1).any(dim=1),
            "highest": target.flatten(1).amax(dim=1),
        }

    def score(
        self, records: Mapping[str, Records], arm: Run, data: Mapping[str, Annotated]
    ) -> Scored:
        """See Evaluation."""
        sets = {split: _patches(one, arm) for split, one in records.items()}
        highest = max(int(one.column(arm.name, "highest").max()) for one in records.values())
        outputs = self._outputs(data["test"], highest)
        test = sets["test"]
        if "train" in sets:
            found = self._told([self._fit(sets["train"], test, outputs)], None)
        else:
            n_images = len(test.target)
            parts = folds(n_images, self.folds)
            fits = [self._fit(test[others(part, n_images)], test[part], outputs) for part in parts]
            found = self._told(fits, torch.cat(parts).argsort())
        without = {s: len(one.images()) - len(sets[s].target) for s, one in records.items()}
        return Scored(found.scores, {**found.details, "images without a labelled pixel": without})

    @abstractmethod
    def _target(self, target: Any, size: tuple[int, int]) -> Tensor:
        """The annotation at the model's size."""

    @abstractmethod
    def _labelled(self, target: Tensor) -> Tensor:
        """Which pixels hold something to learn."""

    @abstractmethod
    def _outputs(self, test: Annotated[Any], highest: int) -> int:
        """Width of the linear layer, given the highest target of all images."""

    @abstractmethod
    def _fit(self, train: LabelledPatches, test: LabelledPatches, outputs: int) -> Any:
        """Fit on some images, look at others."""

    @abstractmethod
    def _told(self, fits: list[Any], order: Tensor | None) -> Scored:
        """The score of all test images, in order."""


def _patches(records: Records, arm: Run) -> LabelledPatches:
    device = probe_device(arm.model)
    columns = (records.rows(arm.name, name, device) for name in ("features", "target"))
    usable = records.column(arm.name, "usable").nonzero()[:, 0]
    if not len(usable):
        raise DataError(f"No image of the {records.split} set has a labelled pixel.")
    return LabelledPatches(*columns)[usable]


@dataclass(frozen=True)
class SegmentationProbe(OfPatches):
    """mIoU of a linear layer from patch features to classes.

    Source:
        arXiv 2304.07193, section 7.4 ("lin."); arXiv 2506.08010, tables 2 and 13 (ADE20K).
    """

    title: ClassVar[str] = "segmentation probe"
    kinds: ClassVar[tuple[type, ...]] = (Mask,)
    source: ClassVar[str] = "arXiv 2304.07193, section 7.4; arXiv 2506.08010, table 2"

    foreground: str = ""
    """Class ids that become class 1, all others 0, as '0-89'; empty: the classes as they are."""

    def _target(self, target: Mask, size: tuple[int, int]) -> Tensor:
        ids = nearest(target.ids, size)
        kept = ids != target.ignore
        if self.foreground:
            ids = torch.where(kept, listed(ids, self.foreground).long(), ids)
        return torch.where(kept, ids, IGNORE).to(torch.int16)

    def _labelled(self, target: Tensor) -> Tensor:
        return target != IGNORE

    def _outputs(self, test: Annotated[Any], highest: int) -> int:
        return 2 if self.foreground else max(len(test.classes), highest + 1)

    def _fit(
        self, train: LabelledPatches, test: LabelledPatches, outputs: int
    ) -> tuple[Overlap, ...]:
        return segmentation_probe(train, test, outputs, self.probe, IGNORE).overlaps

    def _told(self, fits: list[tuple[Overlap, ...]], order: Tensor | None) -> Scored:
        runs = []
        for parts in zip(*fits, strict=True):  # by seed
            whole = reduce(add, parts)
            runs.append(whole if order is None else _ordered(whole, order))
        per_seed = [100 * run.iou.nanmean().item() for run in runs]
        score = MeanOfRuns([MeanIoU(run, scale=100) for run in runs])
        return Scored({"mIoU %": score}, _seeds(per_seed))


def _ordered(counts: Overlap, order: Tensor) -> Overlap:
    return Overlap(counts.intersection[order], counts.predicted[order], counts.labelled[order])


@dataclass(frozen=True)
class DepthProbe(OfPatches):
    """Root mean square error of a linear layer from patch features to depth.

    Source:
        arXiv 2304.07193, section 7.4; arXiv 2506.08010, tables 2, 9 and 13 (NYU Depth v2).
    """

    title: ClassVar[str] = "depth probe"
    kinds: ClassVar[tuple[type, ...]] = (Depth,)
    source: ClassVar[str] = "arXiv 2304.07193, section 7.4; arXiv 2506.08010, table 2"

    probe: DenseProbe = DenseProbe(learning_rate=5e-3)
    """How the linear head is trained, and its seeds."""
    kind: Literal["bins", "regression"] = "bins"
    """256 bins, or one output."""
    eigen_crop: bool = True
    """Of 480 x 640 images only rows 45 to 470 and columns 41 to 600 count (Eigen et al. 2014)."""

    def _target(self, target: Depth, size: tuple[int, int]) -> Tensor:
        metres = target.metres.clone()
        if self.eigen_crop and tuple(metres.shape) == (480, 640):
            inside = torch.zeros_like(metres, dtype=torch.bool)
            inside[45:471, 41:601] = True
            metres[~inside] = 0
        return nearest(metres, size)

    def _labelled(self, target: Tensor) -> Tensor:
        return DepthHead(self.kind).holds_depth(target)

    def _outputs(self, test: Annotated[Any], highest: int) -> int:
        return DepthHead(self.kind).outputs

    def _fit(self, train: LabelledPatches, test: LabelledPatches, outputs: int) -> Tensor:
        head = DepthHead(self.kind)
        return depth_probe(train, test, head, self.probe).rmse_per_image.cpu()

    def _told(self, fits: list[Tensor], order: Tensor | None) -> Scored:
        errors = torch.cat(fits, dim=1)
        errors = errors if order is None else errors[:, order]
        return Scored({"rmse [m]": Mean(errors.mean(dim=0))}, _seeds(errors.mean(dim=1).tolist()))


def _seeds(per_seed: list[float]) -> dict[str, Any]:
    spread = {"over seeds": over_seeds(per_seed).to_dict()} if len(per_seed) > 1 else {}
    return {"per seed": per_seed, **spread}
