"""The command line `ttreg`: one small file a sub-command, each a frozen dataclass with `run`.

Field docstrings are the `--help` texts. Results go to standard output, everything else to
standard error; `--json` makes the output one JSON document. Exit status: 0 done, 1 the answer is
no or the input is bad, 2 wrong usage.
"""

import logging
import sys
from importlib import import_module
from typing import Annotated, Any

import tyro

from ttreg_interp.errors import TTRegError

COMMANDS = {
    "demo": "demo.Demo",
    "find": "find.Find",
    "apply": "apply.Apply",
    "outliers": "outliers.Outliers",
    "merge": "merge.Merge",
    "neurons": "neurons.Neurons",
    "report": "report.Report",
    "explore": "explore.Explore",
    "analyses": "analyses.Analyses",
    "eval": "eval.Eval",
    "language": "language.Language",
    "verify": "verify.Verify",
    "models": "models.Models",
}
"""Sub-command -> its dataclass, in the order of `--help`."""


def _commands() -> Any:
    union: Any = None
    for name, path in COMMANDS.items():
        module, cls = path.split(".")
        kind = getattr(import_module(f"{__name__}.{module}"), cls)
        member = Annotated[kind, tyro.conf.subcommand(name=name)]
        union = member if union is None else union | member
    return union


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command; returns the exit status."""
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr
    )
    command = tyro.cli(
        _commands(),
        prog="ttreg",
        description=(
            "Register neurons and test-time registers of vision transformers.\n"
            "Start with `ttreg demo`; then `ttreg find MODEL --images FOLDER --out neurons.json`."
        ),
        args=arguments,
        config=(tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
    )
    try:
        return command.run()
    except TTRegError as error:
        sys.stderr.write(f"ttreg: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("ttreg: interrupted; nothing half-written was left behind\n")
        return 130


def entry() -> None:
    """The console script."""
    sys.exit(main())
