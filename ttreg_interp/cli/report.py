"""`ttreg report`: the page of a run directory, built again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ttreg_interp.cli.common import emit


@dataclass(frozen=True, kw_only=True)
class Report:
    """Build the self-contained HTML page of a run directory, as `ttreg apply` and `ttreg demo` write it."""

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    """A folder with run.json and maps.safetensors."""
    out: Path | None = None
    """The page. Default: report.html in the folder."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        """Write the page, say where."""
        from ttreg_interp.report.html import write_report

        page = write_report(self.run_dir, self.out)
        emit({"page": str(page)}, self.json, f"Open {page}")
        return 0
