"""`ttreg merge`: the shards of a search, as one."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from ttreg_interp.cli.common import emit


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Merge the files that `ttreg find --shard I/N --resume FILE` wrote into one.

    `ttreg find --resume MERGED` with the same flags, without --shard, then goes on from there: the
    neurons are those of a run in one piece, to the last bit.
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """The files of all shards, in any order."""
    out: Path
    """The merged file."""
    json: bool = False
    """Print one JSON document."""

    def run(self) -> int:
        """Merge, say where."""
        from ttreg_interp.discovery import merge

        merged = merge(self.files, self.out)
        body = {"merged": str(merged), "shards": len(self.files)}
        emit(body, self.json, f"{len(self.files)} shards merged into {merged}")
        return 0
