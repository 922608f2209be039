"""``certvae report``: a run, or several side by side, as one HTML file that loads nothing and runs no script."""

from certvae.report.command import main
from certvae.report.page import Report, make_report
from certvae.report.runs import Phase, Run, read_runs

__all__ = ["Phase", "Report", "Run", "main", "make_report", "read_runs"]
