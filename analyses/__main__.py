"""Run every script of a room and build one page: `python -m analyses paper --out OUT`."""

import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

import tyro

from analyses._page import write_page
from analyses._run import run, scripts
from ttreg_interp.errors import TTRegError


@dataclass(frozen=True)
class All:
    """Run every script of a room; options that a script does not have are left out for it."""

    room: tyro.conf.Positional[str] = "paper"
    """Folder under analyses/."""
    out: Path = Path("runs/analyses")
    """Folder for a folder each, and for index.html."""
    model: str = "testbed:planted"
    """A model spec."""
    neurons: str = ""
    """A file of `ttreg find`, or LAYER:NEURON separated by commas; absent: planted or found."""
    images: str = ""
    """Folder of images; photographs of scikit-image if absent."""
    limit: int = 64
    """At most so many images."""
    image_size: int | None = None
    """Another resolution in pixels."""
    only: tuple[str, ...] = ()
    """Names of scripts; default all."""

    def run(self) -> int:
        """Run them one after the other; the status is 1 if a script found nothing to analyse."""
        failed: dict[str, str] = {}
        for name, module in scripts(self.room):
            if self.only and name not in self.only:
                continue
            taken = {field.name for field in fields(module.Config)}
            options = {k: v for k, v in vars(self).items() if k in taken and k != "out"}
            began = time.perf_counter()
            try:
                findings = run(module, module.Config(out=self.out / name, **options))
            except TTRegError as error:
                failed[name] = str(error)
            said = failed.get(name) or findings.headline
            print(f"{name} ({time.perf_counter() - began:.0f} s): {said}", flush=True)
        print(write_page(self.room, self.out, failed))
        return int(bool(failed))


if __name__ == "__main__":
    sys.exit(tyro.cli(All).run())
