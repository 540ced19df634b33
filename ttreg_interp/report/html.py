"""The report: one HTML file with its data, styles and scripts inside."""

from pathlib import Path

from ttreg_interp.report.run import Run, write_whole


def write_report(run_dir: Path | str, path: Path | str | None = None) -> Path:
    """Build the report of a recorded run: one file that opens without server or network.

    Args:
        run_dir: what `record_run` wrote.
        path: where to write; default `report.html` in the run directory.

    Returns:
        The file.

    Raises:
        ArtifactError: `run_dir` holds no readable run.
    """
    from jinja2 import Environment, PackageLoader

    run = Run.load(run_dir)
    pages = Environment(loader=PackageLoader("ttreg_interp.report", "page"), autoescape=True)
    target = Path(path) if path is not None else Path(run_dir) / "report.html"
    write_whole(target, pages.get_template("report.html").render(run=run.info))
    return target
