"""The report: one HTML file with its data, styles and scripts inside."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from ttreg_interp.report.blocks import TokenBlocks
from ttreg_interp.report.curves import arm_layout, read_curves
from ttreg_interp.report.neurons import facts_table, neuron_facts, sparsity_chart
from ttreg_interp.report.pack import Plane, pack_codes, pack_floats
from ttreg_interp.report.run import Run, write_whole
from ttreg_interp.report.sections import calibration, tables
from ttreg_interp.report.tables import make_table
from ttreg_interp.report.thumbnails import data_uri
from ttreg_interp.report.words import cards, sentences

SCRIPTS = ("decode.js", "maps.js", "colour.js", "chart.js", "neurons.js", "app.js")
"""In the order in which they build on each other."""
FLOAT_MAPS, CODE_MAPS = ("norms", "neurons", "exact"), ("tokens", "heads")


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
    from jinja2 import Environment, FunctionLoader
    from markupsafe import Markup

    run = Run.load(run_dir)
    pages = Environment(loader=FunctionLoader(page_file), autoescape=True, trim_blocks=True)
    page = pages.get_template("report.html").render(
        _context(run),
        style=Markup(page_file("style.css")),
        script=Markup("\n".join(page_file(name) for name in SCRIPTS)),
        blobs=_blobs(run),
    )
    target = Path(path) if path is not None else Path(run_dir) / "report.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, page)
    return target


def page_file(name: str) -> str:
    """A script, style or template of the page."""
    return (resources.files("ttreg_interp.report") / "page" / name).read_text(encoding="utf-8")


def _context(run: Run) -> dict[str, Any]:
    """What the template shows by itself, and `facts` for the scripts."""
    info, curves, neurons = run.info, read_curves(run), neuron_facts(run)
    calibrated = calibration(info["summary"])
    facts = {
        "n_layers": info["model"]["n_layers"],
        "n_heads": info["model"]["n_heads"],
        "attention": info["attention"],
        "arms": [_arm_facts(arm) for arm in info["arms"]],
        "images": [
            {"name": image["name"], "picture": data_uri(picture)}
            for image, picture in zip(info["images"], run.maps["thumbnails"], strict=True)
        ],
        "neurons": [asdict(one) for one in neurons],
        "curves": [asdict(one) for one in curves],
        "sparsity": asdict(sparsity_chart(run, neurons)) if neurons else None,
        "charts": [asdict(chart) for chart in calibrated[0]] if calibrated else [],
    }
    return {
        "info": info,
        "facts": facts,
        "sentences": sentences(info, curves),
        "cards": cards(info, curves),
        "calibration": calibrated,
        "tables": tables(info["summary"]),
        "neuron_table": make_table("neurons", facts_table(neurons)) if neurons else None,
        "summary_json": json.dumps(info["summary"], indent=1) if info["summary"] else "",
        "arms_json": [json.dumps(arm["intervention"], indent=1) for arm in info["arms"]],
    }


def _arm_facts(arm: dict[str, Any]) -> dict[str, Any]:
    layout = arm_layout(arm)
    return {
        "name": arm["name"],
        "description": arm["description"],
        "height": layout.height,
        "width": layout.width,
        "n_cls": layout.n_cls,
        "prefix": layout.row_names()[: layout.patches.start],
        "rows": arm["rows"],
    }


def _blobs(run: Run) -> Iterator[tuple[str, str]]:
    """Id and text of every packed map: one for each arm, image and kind."""
    for number in range(len(run.info["arms"])):
        maps, first = run.of_arm(number), run.of_arm(0)
        for image in range(len(run.info["images"])):
            for kind in FLOAT_MAPS:
                if kind in maps:
                    yield f"map-{number}-{image}-{kind}", pack_floats(maps[kind][image])
            for kind in CODE_MAPS:
                plane, first_plane = _plane(run, number, kind), _plane(run, 0, kind)
                guide = (first[kind][image], first_plane) if number else None
                yield (
                    f"map-{number}-{image}-{kind}",
                    pack_codes(maps[kind][image], plane, guide),
                )


def _plane(run: Run, number: int, kind: str) -> Plane:
    arm = run.info["arms"][number]
    layout, sides = arm_layout(arm), arm["rows"][kind]
    start = layout.patches.start
    return Plane(
        query_start=start,
        key_start=start + int(run.info["attention"]["elsewhere"]),
        width=TokenBlocks(layout, sides["query"]).grid[1],
    )
