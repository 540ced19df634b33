"""`ttreg find`: images in, register neurons out."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ttreg_interp.cli.common import ImageOptions, ModelOptions, emit
from ttreg_interp.discovery.config import FindConfig
from ttreg_interp.errors import DataError

if TYPE_CHECKING:
    from ttreg_interp.discovery import Shard

_NUMBERS = ("threshold", "threshold_value", "detect_layer", "first_layer", "last_layer", "top_k")


@dataclass(frozen=True, kw_only=True)
class Find(ModelOptions, ImageOptions):
    """Find the neurons that make a model's outlier tokens, and save them with their evidence.

    Nothing has to be known: threshold, layers and number of neurons are chosen from the images.
    Flags fix what you want fixed. --images also takes hf:NAME:SPLIT and a pattern of tars.

    Several processes share the work under `torchrun --no-python --nproc-per-node N ttreg find ...`,
    or as shards: `ttreg find --shard 0/4 --resume part0 ...` and so on, then `ttreg merge`.
    """

    out: Path = Path("neurons.json")
    """Where to save the neurons (schema register-neurons/1)."""
    plot: Path | None = None
    """Where to save a picture of the scores and of the greedy curve."""
    resume: Path | None = None
    """A checkpoint file: written while running, continued from if it is there."""
    shard: str | None = None
    """I/N: only score every N-th batch, from the I-th on (0/N to N-1/N), into the file of --resume."""
    auto: bool = False
    """Choose every number from the images. This is the default; the flag refuses numbers beside it."""
    config: FindConfig = field(default_factory=FindConfig)
    """How to look."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        """Find, save, print."""
        from ttreg_interp.discovery import torchrun

        if self.auto:
            self._refuse_numbers()
        if self.shard is not None:
            return self._score()
        with torchrun() as process:
            return self._find(first=process.number == 0)

    def _find(self, first: bool) -> int:
        """The whole search; under torchrun the first process alone saves and prints."""
        from ttreg_interp.discovery import find_register_neurons

        found = find_register_neurons(
            self.load(), self.open(), self.config, progress=first, checkpoint=self.resume
        )
        if not first:
            return 0
        found.save(self.out)
        if self.plot is not None:
            found.plot(self.plot)
        body = {"out": str(self.out), **found.to_dict()}
        emit(body, self.json, str(found), f"saved to {self.out}")
        return 0

    def _score(self) -> int:
        """One shard of the scores."""
        from ttreg_interp.discovery import score_shard

        if self.resume is None:
            raise DataError("--shard leaves its sums in the file of --resume, which is not given.")
        shard = self._shard()
        file = score_shard(
            self.load(),
            self.open(),
            self.config,
            shard=shard,
            checkpoint=self.resume,
            progress=True,
        )
        done = f"shard {shard.number} of {shard.of} saved to {file}; `ttreg merge` joins all"
        emit({"shard": shard.number, "of": shard.of, "file": str(file)}, self.json, done)
        return 0

    def _shard(self) -> "Shard":
        from ttreg_interp.discovery import Shard

        number, slash, of = str(self.shard).partition("/")
        if not (slash and number.isdecimal() and of.isdecimal()):
            raise DataError(f"--shard {self.shard}: write I/N, such as 0/4, 1/4, 2/4, 3/4.")
        return Shard(int(number), int(of))

    def _refuse_numbers(self) -> None:
        given = [name for name in _NUMBERS if getattr(self.config, name) is not None]
        if given:
            flags = ", ".join("--" + name.replace("_", "-") for name in given)
            raise DataError(
                f"--auto chooses every number from the images, but {flags} was given too. Drop one."
            )
