"""`ttreg find`: images in, register neurons out."""

from dataclasses import dataclass, field
from pathlib import Path

from ttreg_interp.cli.common import ImageOptions, ModelOptions, emit
from ttreg_interp.discovery.config import FindConfig


@dataclass(frozen=True, kw_only=True)
class Find(ModelOptions, ImageOptions):
    """Find the neurons that make a model's outlier tokens, and save them with their evidence.

    Without further flags nothing has to be known: threshold, layers and number of neurons are
    chosen from the images. Flags fix what you want fixed.
    """

    out: Path = Path("neurons.json")
    """Where to save the neurons (schema register-neurons/1)."""
    resume: Path | None = None
    """A checkpoint file: written while running, continued from if it is there."""
    config: FindConfig = field(default_factory=FindConfig)
    """How to look."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        """Find, save, print."""
        from ttreg_interp.discovery import find_register_neurons

        model = self.load()
        neurons = find_register_neurons(
            model, self.open(), self.config, progress=True, checkpoint=self.resume
        )
        neurons.save(self.out)
        emit({"out": str(self.out), **neurons.to_dict()}, self.json, str(neurons), f"saved to {self.out}")
        return 0
