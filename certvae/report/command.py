"""The command ``certvae report``."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from certvae.io.files import write_atomic
from certvae.report.figures import FORMATS
from certvae.report.page import Report, make_report
from certvae.report.runs import read_runs, readable

__all__ = ["main"]

DESCRIPTION = """Write the report of a run, or a comparison of several: one HTML file without external files or scripts.

RUN_DIR is the folder of a protocol, or of a fit whose CertificateCallback has `save_dir`. For images,
the model and the data of the run's YAML are built. A YAML is code: for a run that is not your own, give --no_images."""


def main(args: Sequence[str] | None = None) -> int:
    """``certvae report``: write the report, and print its path and verdict."""
    parser = argparse.ArgumentParser(
        prog="certvae report", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dirs", metavar="RUN_DIR", type=Path, nargs="+", help="folder of a run")
    parser.add_argument("--output", type=Path, help="default: RUN_DIR/report.html; of several runs, ./report.html")
    parser.add_argument("--data_dir", help="data folder, instead of the YAML's")
    parser.add_argument("--no_images", action="store_true", help="do not build model and data; run no code of the YAML")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="write each figure to this folder, too")
    parser.add_argument("--formats", nargs="+", default=["png"], choices=FORMATS, help="of these figures")
    given = parser.parse_args(args)
    runs = read_runs(given.run_dirs)
    report = make_report(runs, given.data_dir, with_images=not given.no_images)
    default = given.run_dirs[0] / "report.html" if len(runs) == 1 else Path("report.html")
    path = write_atomic(given.output or default, report.html.encode(errors="replace"))
    if given.figures is not None:
        _save_figures(report, given.figures, given.formats)
    print(
        "\n".join(
            [*(f"Left out: {readable(reason)}" for reason in report.left_out), report.headline, readable(str(path))]
        )
    )
    return 0


def _save_figures(report: Report, folder: Path, formats: Sequence[str]) -> None:
    for number, charts in enumerate(report.charts.values()):
        # A name may be a path if two folders have the same name.
        name = re.sub(r"[^\w.-]+", "_", list(report.charts)[number])
        place = folder if len(report.charts) == 1 else folder / f"{number}_{name}"
        for chart in charts:
            for form in formats:
                chart.save(place, form)
