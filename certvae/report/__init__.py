"""``certvae report``: one HTML file on one or several runs, without external files or scripts."""

from certvae.report.command import main
from certvae.report.page import Report, make_report
from certvae.report.runs import Phase, Run, read_runs

__all__ = ["Phase", "Report", "Run", "main", "make_report", "read_runs"]
