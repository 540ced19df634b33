"""Typographic attacks: how often a text in the image beats what the image shows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ttreg_interp.data.annotated import Annotated, Attack
from ttreg_interp.errors import DataError
from ttreg_interp.evaluations.arms import Run
from ttreg_interp.evaluations.base import Evaluation, Kept, Prepared, Scored
from ttreg_interp.evaluations.by_area import ByArea
from ttreg_interp.evaluations.classification import preprocessed
from ttreg_interp.evaluations.features import observed
from ttreg_interp.evaluations.geometry import cropped_area
from ttreg_interp.evaluations.records import Records
from ttreg_interp.evaluations.text import Prompts, activation_notes, embedded
from ttreg_interp.hooked import HookedViT
from ttreg_interp.metrics.classification import zero_shot_classifier, zero_shot_logits
from ttreg_interp.metrics.set_scores import Mean

Judge: TypeAlias = Callable[[Tensor, list[str]], Tensor]
"""From outputs [batch, output] and a word for each image to how well they fit, [batch]."""


@dataclass(frozen=True)
class TypographicAttack(Evaluation):
    """Share of images whose written word scores above what they show.

    Source:
        arXiv 2506.08010, section 5.3, table 12 and the rebuttal; RTA-100, arXiv 2304.04512.
    """

    title: ClassVar[str] = "typographic attack"
    kinds: ClassVar[tuple[type, ...]] = (Attack,)
    source: ClassVar[str] = "arXiv 2506.08010, table 12; arXiv 2304.04512"

    prompts: Prompts = Prompts(names="data", templates="photo")
    """Templates of the two words; their names come from the images."""

    def context(self, model: HookedViT, data: Mapping[str, Annotated[Any]]) -> Judge:
        """What compares outputs with words: the text tower, or the classes of a classifier."""
        if model.text is not None:
            return _Words(model, self.prompts)
        if model.parts.is_classifier:
            return _Classes(data["test"].classes)
        raise DataError(
            f"{model.cfg.model_name} has neither a text tower nor classes: nothing to attack."
        )

    def notes(self, model: HookedViT) -> Mapping[str, Any]:
        """Activation function of the vision tower."""
        return activation_notes(model)

    def prepare(self, model: HookedViT, image: Image.Image, target: Any) -> Prepared:
        """See Evaluation; the text's area becomes patches."""
        area = None if target.area is None else cropped_area(model, target.area)
        return Prepared(preprocessed(model, image), (target.real, target.text, area))

    def measure(self, run: Run, pixels: Tensor, targets: list[Any], context: Judge) -> Kept:
        """See Evaluation; an image whose text the preprocessing crops away keeps a mark."""
        real, text, areas = (list(column) for column in zip(*targets, strict=True))
        marked = [area is not None for area in areas]
        if isinstance(run.deed, ByArea):
            if not all(marked):
                raise DataError(
                    f"Arm {run.name!r} needs to know where the text stands, and an image has no mark. "
                    "Mark it (areas/NAME.png, white: text), or leave such arms out."
                )
            known = torch.stack(areas).to(pixels.device)
            pixels, deed = run.deed.pixels(pixels, known), run.deed.intervention(known)
        else:
            deed = run.intervention
        output = observed(run.model, deed, pixels).output
        visible = [area is None or bool(area.any()) for area in areas]
        success = context(output, text) > context(output, real)
        return {"success": success, "visible": torch.tensor(visible)}

    def score(
        self, records: Mapping[str, Records], arm: Run, data: Mapping[str, Annotated]
    ) -> Scored:
        """See Evaluation."""
        visible = records["test"].column(arm.name, "visible")
        success = records["test"].column(arm.name, "success")[visible]
        details = {"images whose text was cropped away": int((~visible).sum())}
        return Scored({"attack success %": Mean(success, scale=100)}, details)


class _Words:
    """Cosine of images with words, by the text tower; each word is encoded once."""

    def __init__(self, model: HookedViT, prompts: Prompts):
        self.model, self.prompts = model, prompts
        self.known: dict[str, Tensor] = {}

    def __call__(
        self, output: Float[Tensor, "batch output"], words: list[str]
    ) -> Float[Tensor, " batch"]:
        directions = torch.cat([self._direction(word) for word in words])
        return zero_shot_logits(output, directions).diagonal()

    def _direction(self, word: str) -> Tensor:
        if word not in self.known:
            embeddings = embedded(self.model, self.prompts.of(word))
            self.known[word] = zero_shot_classifier([embeddings])
        return self.known[word]


class _Classes:
    """Logits of a classifier whose class names are known."""

    def __init__(self, names: tuple[str, ...]):
        self.names: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            self.names.setdefault(name, []).append(index)

    def __call__(
        self, output: Float[Tensor, "batch output"], words: list[str]
    ) -> Float[Tensor, " batch"]:
        if unknown := sorted(set(words) - set(self.names)):
            raise DataError(f"{unknown[0]!r} is no class name of the set; a classifier needs one.")
        # ImageNet has two classes called 'crane': a word is as good as the better of them
        pairs = zip(output, words, strict=True)
        return torch.stack([row[self.names[word]].max() for row, word in pairs])
