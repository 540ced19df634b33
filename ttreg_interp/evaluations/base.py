"""What an evaluation is: what enters, what is kept of each image, and what a set of images scores."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor

from ttreg_interp.data.annotated import Annotated
from ttreg_interp.errors import DataError
from ttreg_interp.evaluations.arms import Run
from ttreg_interp.evaluations.records import Records
from ttreg_interp.hooked import HookedViT
from ttreg_interp.metrics.set_scores import SetScore

Kept = dict[str, Shaped[Tensor, "batch ..."]]
"""What is kept of each image of a batch, by name; an image's part has one shape in a whole run."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """One image as it enters the model."""

    pixels: Float[Tensor, "channel height width"]
    """Preprocessed."""
    target: Any
    """What is known about it, in the geometry of the pixels."""


@dataclass(frozen=True)
class Scored:
    """What one arm scores."""

    scores: Mapping[str, SetScore]
    """By the name of the column, as tables call it."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else was found, as JSON takes it: every setting of a sweep, every seed."""


@dataclass(frozen=True)
class Evaluation(ABC):
    """A protocol. Its fields are its configuration, recorded with every result."""

    title: ClassVar[str]
    """In a few words."""
    kinds: ClassVar[tuple[type, ...]]
    """Annotations that it takes."""
    splits: ClassVar[tuple[str, ...]] = ("test",)
    """Which sets of images it wants."""
    source: ClassVar[str]
    """Where the protocol is described."""

    def check(self, runs: Sequence[Run], data: Mapping[str, Annotated[Any]]) -> None:
        """Refuse data or arms that do not fit.

        Raises:
            DataError: a split too many or too few, or annotations of another kind.
        """
        if sorted(data) != sorted(self.splits):
            raise DataError(
                f"{self.title}: found the image sets {sorted(data)}; it takes {list(self.splits)}."
            )
        for split, images in data.items():
            if not issubclass(images.kind, self.kinds):
                wanted = " or ".join(kind.__name__ for kind in self.kinds)
                raise DataError(
                    f"{self.title}: the {split} set {images.source} is annotated with "
                    f"{images.kind.__name__}; it takes {wanted}."
                )

    def context(self, model: HookedViT, data: Mapping[str, Annotated[Any]]) -> Any:
        """What is made once for a model, such as a zero-shot classifier; None by default."""
        return None

    def notes(self, model: HookedViT) -> Mapping[str, Any]:
        """What a reader of the result must know of the model, such as its activation function."""
        return {}

    @abstractmethod
    def prepare(self, model: HookedViT, image: Image.Image, target: Any) -> Prepared:
        """An image and its annotation as this protocol wants them."""

    @abstractmethod
    def measure(self, run: Run, pixels: Tensor, targets: list[Any], context: Any) -> Kept:
        """Run one arm on a batch and say what to keep of each image."""

    @abstractmethod
    def score(
        self, records: Mapping[str, Records], arm: Run, data: Mapping[str, Annotated]
    ) -> Scored:
        """What one arm (or draw of a control) scores, from the records of each split."""

    def to_dict(self) -> dict[str, Any]:
        """Class and fields."""
        return {"evaluation": type(self).__name__, **asdict(self)}
