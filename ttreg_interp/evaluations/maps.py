"""Attention maps as segmentations: the [CLS] row of one layer, binarised at its mean."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from ttreg_interp.data.annotated import Annotated, Mask
from ttreg_interp.data.masks import nearest
from ttreg_interp.errors import DataError
from ttreg_interp.evaluations.arms import Run
from ttreg_interp.evaluations.base import Evaluation, Kept, Prepared, Scored
from ttreg_interp.evaluations.features import attention_map, observed
from ttreg_interp.evaluations.geometry import fitted
from ttreg_interp.evaluations.records import Records
from ttreg_interp.hooked import HookedViT
from ttreg_interp.metrics.segmentation import MeanIoU, Overlap, score_maps
from ttreg_interp.metrics.set_scores import Mean, Ratio


def id_ranges(text: str) -> list[tuple[int, int]]:
    """First and last id of each range.

    Raises:
        DataError: no such list.

    Example:
        >>> id_ranges("3,5-7"), id_ranges("1-")
        ([(3, 3), (5, 7)], [(1, 9223372036854775807)])
    """
    ranges = []
    for word in text.split(","):
        first, dash, last = word.strip().partition("-")
        if not first.isdigit() or not (last.isdigit() or not last):
            raise DataError(
                f"{text!r} lists no class ids; write e.g. '1', '0-89', '3,5-7' or '1-'."
            )
        end = int(last) if last else (sys.maxsize if dash else int(first))
        ranges.append((int(first), end))
    return ranges


def listed(ids: Int[Tensor, "height width"], ranges: str) -> Bool[Tensor, "height width"]:
    """Where the id is in the ranges."""
    inside = torch.zeros_like(ids, dtype=torch.bool)
    for first, last in id_ranges(ranges):
        inside |= (ids >= first) & (ids <= last)
    return inside


@dataclass(frozen=True)
class AttentionSegmentation(Evaluation):
    """mIoU, pixel accuracy and mAP of the last layer's [CLS] attention against foreground masks.

    Image and mask are squeezed to the model's size. A mask of several classes is read as a
    foreground by `foreground`.

    Source:
        arXiv 2012.09838, section 4; arXiv 2506.08010, table 4.
    """

    title: ClassVar[str] = "attention segmentation"
    kinds: ClassVar[tuple[type, ...]] = (Mask,)
    source: ClassVar[str] = (
        "arXiv 2012.09838, section 4 (ImageNet-Segmentation); arXiv 2506.08010, table 4"
    )

    layer: int = -1
    """Whose attention; negative numbers count from the end."""
    foreground: str = "1-"
    """Class ids of the foreground: '1', '0-89', '3,5-7', or '1-' for all from 1 on."""

    def __post_init__(self) -> None:
        id_ranges(self.foreground)

    def prepare(self, model: HookedViT, image: Image.Image, target: Any) -> Prepared:
        """See Evaluation; 1 is foreground, 0 background, -1 ignored."""
        ids = nearest(target.ids, model.image_size)
        kept = ids != target.ignore
        inside = listed(ids, self.foreground)
        return Prepared(fitted(model, image, "resize"), torch.where(kept, inside.long(), -1))

    def measure(self, run: Run, pixels: Tensor, targets: list[Any], context: Any) -> Kept:
        """See Evaluation; an image without a labelled pixel of each kind keeps a mark."""
        layer = self.layer % run.model.cfg.n_layers
        maps = attention_map(observed(run.model, run.intervention, pixels, [layer]), layer)
        masks = torch.stack(targets).to(maps.device)
        usable = torch.stack([torch.stack([(m == 0).any(), (m == 1).any()]).all() for m in masks])
        # what cannot be scored is scored on a stand-in, and left out by the mark
        stand_in = torch.zeros_like(masks)
        stand_in[:, 0, 0] = 1
        scores = score_maps(maps, torch.where(usable[:, None, None], masks, stand_in))
        return {
            "intersection": scores.overlap.intersection,
            "predicted": scores.overlap.predicted,
            "labelled": scores.overlap.labelled,
            "precision": scores.average_precision,
            "usable": usable,
        }

    def score(
        self, records: Mapping[str, Records], arm: Run, data: Mapping[str, Annotated]
    ) -> Scored:
        """See Evaluation."""
        own = records["test"]
        usable = own.column(arm.name, "usable")
        counts = Overlap(
            *(
                own.column(arm.name, name)[usable]
                for name in ("intersection", "predicted", "labelled")
            )
        )
        precision = own.column(arm.name, "precision")[usable]
        scores = {
            "mIoU %": MeanIoU(counts, scale=100),
            "pixel accuracy %": Ratio(
                counts.intersection.sum(dim=1), counts.labelled.sum(dim=1), 100
            ),
            "mAP %": Mean(precision, scale=100),
        }
        return Scored(
            scores, {"images without both foreground and background": int((~usable).sum())}
        )
