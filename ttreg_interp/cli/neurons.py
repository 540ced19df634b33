"""`ttreg neurons`: what a neuron file says, or what two of them share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ttreg_interp.cli.common import emit


@dataclass(frozen=True, kw_only=True)
class Neurons:
    """Show a list of neurons, or compare two: files of `ttreg find`, or lists that others published,
    by name. Without any, name the published lists."""

    lists: tyro.conf.Positional[tuple[str, ...]] = ()
    """One file or name, or two to compare."""
    plot: Path | None = None
    """Where to save a picture of the first list: its scores, and the greedy curve if it has one."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        """Show, or compare."""
        from ttreg_interp.discovery import compare_neurons, published_lists
        from ttreg_interp.errors import DataError

        if len(self.lists) > 2:
            raise DataError(f"{len(self.lists)} lists: give one to show, or two to compare.")
        if not self.lists:
            names = published_lists()
            emit({"published": list(names)}, self.json, *names)
            return 0
        read = [_read(name) for name in self.lists]
        if self.plot is not None:
            read[0].plot(self.plot)
        shown = read[0] if len(read) == 1 else compare_neurons(*read)
        emit(shown.to_dict(), self.json, str(shown))
        return 0


def _read(name: str) -> Any:
    from ttreg_interp.discovery import RegisterNeurons, published_lists

    if name in published_lists():
        return RegisterNeurons.published(name)
    return RegisterNeurons.load(name)
