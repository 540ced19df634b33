"""`ttreg neurons`: what a neuron file says, or what two of them share."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from ttreg_interp.cli.common import emit


@dataclass(frozen=True, kw_only=True)
class Neurons:
    """Show a neuron file, or compare two; published lists are read as they are."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """One file, or two to compare."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        """Show, or compare."""
        from ttreg_interp.discovery import RegisterNeurons, compare_neurons
        from ttreg_interp.errors import DataError

        if len(self.files) not in (1, 2):
            raise DataError(f"{len(self.files)} files: give one to show, or two to compare.")
        read = [RegisterNeurons.load(file) for file in self.files]
        shown = read[0] if len(read) == 1 else compare_neurons(*read)
        emit(shown.to_dict(), self.json, str(shown))
        return 0
