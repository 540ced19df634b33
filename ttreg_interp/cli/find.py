"""`ttreg find`: images in, register neurons out."""

from dataclasses import dataclass, field
from pathlib import Path

from ttreg_interp.cli.common import ImageOptions, ModelOptions, emit
from ttreg_interp.discovery.config import FindConfig
from ttreg_interp.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Find(ModelOptions, ImageOptions):
    """Find the neurons that make a model's outlier tokens, and save them with their evidence.

    Nothing has to be known: threshold, layers and number of neurons are chosen from the images.
    Flags fix what you want fixed.
    """

    out: Path = Path("neurons.json")
    """Where to save the neurons (schema register-neurons/1)."""
    resume: Path | None = None
    """A checkpoint file: written while running, continued from if it is there."""
    auto: bool = False
    """Choose every number from the images. This is the default; the flag refuses numbers beside it."""
    config: FindConfig = field(default_factory=FindConfig)
    """How to look."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        """Find, save, print."""
        from ttreg_interp.discovery import find_register_neurons

        if self.auto:
            self._refuse_numbers()
        model = self.load()
        neurons = find_register_neurons(
            model, self.open(), self.config, progress=True, checkpoint=self.resume
        )
        neurons.save(self.out)
        emit(
            {"out": str(self.out), **neurons.to_dict()},
            self.json,
            str(neurons),
            f"saved to {self.out}",
        )
        return 0

    def _refuse_numbers(self) -> None:
        fixed = (
            "threshold",
            "threshold_value",
            "detect_layer",
            "first_layer",
            "last_layer",
            "top_k",
        )
        given = [name for name in fixed if getattr(self.config, name) is not None]
        if given:
            flags = ", ".join("--" + name.replace("_", "-") for name in given)
            raise DataError(
                f"--auto chooses every number from the images, but {flags} was given too. Drop one."
            )
