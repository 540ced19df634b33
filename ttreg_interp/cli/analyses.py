"""`ttreg analyses`: the scripts of the analyses folder, listed and run.

The package knows none of them: they are read as files and run as `python -m analyses...`, where the
folder lies beside the package (a checkout) or in the working directory.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from ttreg_interp.cli.common import emit, table
from ttreg_interp.errors import DataError

FOLDER = "analyses"
ALL = "all"


@dataclass(frozen=True)
class Script:
    """One file of a room."""

    name: str
    """Of the file, without suffix."""
    title: str
    """First sentence of its header."""
    place: str
    """Paper and place."""


@dataclass(frozen=True, kw_only=True)
class Analyses:
    """List the analyses, or run one: a figure, table or claim of a paper, on the embedded model or on
    one of yours. NAME `all` runs a whole room and builds one page."""

    name: tyro.conf.Positional[str | None] = None
    """Script to run, or `all`; absent: list them."""
    room: str = "paper"
    """Folder under analyses/: paper, theory, ..."""
    out: Path = Path("runs/analyses")
    """Where results go, a folder each."""
    model: str | None = None
    """Model spec; absent: the embedded one."""
    neurons: str | None = None
    """A file of `ttreg find`, or LAYER:NEURON separated by commas."""
    images: str | None = None
    """Folder of images; absent: photographs that come with scikit-image."""
    limit: int | None = None
    """At most so many images."""
    image_size: int | None = None
    """Another resolution in pixels."""
    json: bool = False
    """List as one JSON document."""

    def run(self) -> int:
        """List, or run and pass the status on."""
        folder = analyses_folder()
        found = {script.name: script for script in scripts(folder / self.room)}
        if self.name is None:
            return self._list(found)
        if self.name not in (*found, ALL):
            raise DataError(
                f"No analysis {self.name!r} in {self.room}; there are {', '.join(found)}, and `{ALL}`."
            )
        paths = [str(folder.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        return subprocess.run(self._command(), env=environment, check=False).returncode

    def _command(self) -> list[str]:
        given = {
            name: getattr(self, name)
            for name in ("model", "neurons", "images", "limit", "image_size")
            if getattr(self, name) is not None
        }
        options = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
        if self.name == ALL:
            return [sys.executable, "-m", FOLDER, self.room, "--out", str(self.out), *options]
        module = f"{FOLDER}.{self.room}.{self.name}"
        return [sys.executable, "-m", module, "--out", str(self.out / str(self.name)), *options]

    def _list(self, found: dict[str, Script]) -> int:
        rows = table(f"Analyses: {self.room}", "name", "paper and place", "what it shows")
        for column in rows.columns:
            column.justify = "left"  # words, not numbers
        for script in found.values():
            rows.add_row(script.name, script.place, script.title)
        hint = f"Run one: ttreg analyses {next(iter(found), 'NAME')} --out OUT"
        emit({"analyses": [vars(script) for script in found.values()]}, self.json, rows, hint)
        return 0


def analyses_folder() -> Path:
    """Where the scripts lie.

    Raises:
        DataError: nowhere; an installed package comes without them.
    """
    for parent in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (parent / FOLDER / "_run.py").is_file():
            return parent / FOLDER
    raise DataError(
        f"No folder {FOLDER}/ here or beside the package: they come with a checkout of the "
        "repository, not with the installed package. Run this inside a checkout."
    )


def scripts(room: Path) -> Iterator[Script]:
    """Scripts of a room, by their headers; none of them is imported.

    Raises:
        DataError: no such room.
    """
    if not room.is_dir():
        raise DataError(f"No folder {room.name}/ in {room.parent.name}/.")
    for path in sorted(room.glob("[!_]*.py")):
        header = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        title, _, rest = header.partition("\n\n")
        _, _, place = rest.partition("Paper and place: ")
        yield Script(
            path.stem, " ".join(title.split()), " ".join(place.partition("\nQuestion:")[0].split())
        )
