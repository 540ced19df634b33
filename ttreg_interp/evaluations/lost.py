"""LOST: unsupervised object discovery from the features of attention, over a grid fixed in advance."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from ttreg_interp.data.annotated import Annotated, Objects
from ttreg_interp.evaluations.arms import Run
from ttreg_interp.evaluations.base import Evaluation, Kept, Prepared, Scored
from ttreg_interp.evaluations.features import SIDES, Side, attention_features
from ttreg_interp.evaluations.geometry import Fit, fitted, seen_size
from ttreg_interp.evaluations.records import Records
from ttreg_interp.hooked import HookedViT
from ttreg_interp.metrics.discovery import Lost, correctly_localised, lost
from ttreg_interp.metrics.set_scores import Best, Mean, SetScore


@dataclass(frozen=True)
class ObjectDiscovery(Evaluation):
    """Corloc of LOST for every kind of feature, layer and bias; the best is an oracle, and says so.

    Where all correlations are positive the box is the whole image. Its corloc, which needs no model, stands
    in the table, and the details say how often each setting's box is the image: a gain that comes from more
    such boxes is no discovery.

    Source:
        arXiv 2109.14279; arXiv 2506.08010, tables 5 and 11, A.14.
    """

    title: ClassVar[str] = "object discovery (LOST)"
    kinds: ClassVar[tuple[type, ...]] = (Objects,)
    source: ClassVar[str] = "arXiv 2109.14279, section 3; arXiv 2506.08010, table 5 and A.14"

    sides: tuple[Side, ...] = SIDES
    """Features of the attention layer, heads side by side."""
    last_layers: int = 4
    """How many layers, counted from the last."""
    biases: tuple[float, ...] = tuple(-step / 10 for step in range(11))
    """Added to the Gram matrix."""
    normalise: bool = True
    """Give features unit length first."""
    k: int = 100
    """Patches of lowest degree that may join the seed."""
    fit: Fit = "auto"
    """How images become pixels; LOST pads them."""

    def layers(self, model: HookedViT) -> range:
        """The layers whose features are taken."""
        n_layers = model.cfg.n_layers
        return range(max(0, n_layers - self.last_layers), n_layers)

    def settings(self, model: HookedViT) -> list[str]:
        """Every setting in words, in the order of the records; layers count from the end."""
        n_layers = model.cfg.n_layers
        return [
            f"{side}, layer {layer - n_layers}, bias {bias:g}"
            for side, layer, bias in product(self.sides, self.layers(model), self.biases)
        ]

    def prepare(self, model: HookedViT, image: Image.Image, target: Any) -> Prepared:
        """See Evaluation; boxes move with the image."""
        height, width = seen_size(model, image, self.fit)
        factors = torch.tensor([width / image.width, height / image.height] * 2)
        return Prepared(fitted(model, image, self.fit), (target.boxes * factors, (height, width)))

    def measure(self, run: Run, pixels: Tensor, targets: list[Any], context: Any) -> Kept:
        """See Evaluation."""
        found = attention_features(
            run.model, run.intervention, pixels, self.layers(run.model), self.sides
        )
        grids = [[features[i] for features in found.values()] for i in range(len(targets))]
        images = zip(grids, targets, strict=True)
        parts = [self._found(grid, boxes, size, run.model) for grid, (boxes, size) in images]
        return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

    def _found(
        self, features: list[Tensor], objects: Tensor, size: tuple[int, int], model: HookedViT
    ) -> dict[str, Tensor]:
        """For every setting: is an object found, is the box the whole image; and would that find one."""
        patch = model.parts.patch_size[0]
        options = [Lost(self.k, bias, self.normalise) for bias in self.biases]
        boxes = [lost(one, patch, size, option).box.cpu() for one in features for option in options]
        whole = torch.tensor([0.0, 0.0, size[1], size[0]])
        known = [objects] * (len(boxes) + 1)
        hits = correctly_localised(torch.stack([*boxes, whole]), known)
        return {
            "found": hits[:-1],
            "whole": (torch.stack(boxes) == whole).all(dim=1),
            "whole found": hits[-1],
        }

    def score(
        self, records: Mapping[str, Records], arm: Run, data: Mapping[str, Annotated]
    ) -> Scored:
        """See Evaluation."""
        found = records["test"].column(arm.name, "found").double().numpy()
        settings = self.settings(arm.model)
        means = found.mean(axis=0)
        scores: dict[str, SetScore] = {f"corloc %, best of {len(settings)}": Best(found, scale=100)}
        for side in self.sides:
            plain = settings.index(f"{side}, layer -1, bias {self.biases[0]:g}")
            scores[f"corloc %, {side}, last layer, bias {self.biases[0]:g}"] = Mean(
                found[:, plain], scale=100
            )
        whole = 100 * records["test"].column(arm.name, "whole").double().mean(dim=0)
        trivial = records["test"].column(arm.name, "whole found")
        scores["corloc %, whole image"] = Mean(trivial, scale=100)
        details = {
            "best": settings[int(means.argmax())],
            "sweep": dict(zip(settings, (100 * means).tolist(), strict=True)),
            "box is the whole image, % of images": dict(zip(settings, whole.tolist(), strict=True)),
        }
        return Scored(scores, details)
