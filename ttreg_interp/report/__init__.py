"""Seeing it: figures for papers, and a report in one HTML file that needs no network."""

from ttreg_interp.report.figures import before_after_figure, layer_curves_figure
from ttreg_interp.report.html import write_report
from ttreg_interp.report.record import record_run

__all__ = ["before_after_figure", "layer_curves_figure", "record_run", "write_report"]
