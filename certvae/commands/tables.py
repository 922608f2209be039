"""Results of a series of runs: a table as CSV, Markdown and terminal text, figures, claims and origin."""

import os
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from string import Formatter
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.table import Table

from certvae.certificate.figures import save_figure
from certvae.io.files import csv_text, write_atomic

__all__ = ["Line", "Results", "commit", "markdown", "origin", "terminal_table"]

HERE = Path(__file__).parent
COLORS = {
    "status": {"CERTIFIED": "green", "NOT_CERTIFIED": "red"},
    "reading": {"ALIGNED": "green", "INFORMATIVE": "cyan", "COLLAPSED": "red"},
}  # color of each word; others are yellow
Line = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """The results of a series of runs.

    Attributes:
        lines: values of each table row, all with the same keys.
        columns: heading and format string of each column; format strings use the keys of ``lines``.
        claims: expected results, and whether these lines show them.
        figures: figures by file name without suffix.
    """

    lines: Sequence[Line]
    columns: Mapping[str, str]
    claims: Mapping[str, bool]
    figures: Mapping[str, Figure]

    def write(self, folder: Path, name: str, made: str) -> list[Path]:
        """Write ``<name>.csv``, ``<name>.md`` and the figures as PNG.

        Args:
            folder: folder of the files.
            name: name of the table's files.
            made: last paragraph of the Markdown file; see :func:`origin`.

        Returns:
            The paths of the CSV, the Markdown file and the figures.
        """
        verdicts = {True: "holds", False: "**does not hold**"}
        found = "".join(f"- {verdicts[holds]}: {claim}.\n" for claim, holds in self.claims.items())
        return [
            write_atomic(folder / f"{name}.csv", csv_text(self.lines[0], self.lines)),
            write_atomic(folder / f"{name}.md", f"{markdown(self.lines, self.columns)}\n{found}\n{made}"),
            *(save_figure(figure, folder / f"{title}.png") for title, figure in self.figures.items()),
        ]


class _Cells(Formatter):
    """Formats a cell; None becomes a dash."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        return "-" if value is None else super().format_field(value, format_spec)


def _cells(line: Line, columns: Mapping[str, str]) -> list[str]:
    return [_Cells().vformat(text, (), line) for text in columns.values()]


def markdown(lines: Sequence[Line], columns: Mapping[str, str]) -> str:
    """A Markdown table; arguments as in :class:`Results`."""
    rows = [_cells(line, columns) for line in lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in [columns, ["---"] * len(columns), *rows])


def terminal_table(title: str, lines: Sequence[Line], columns: Mapping[str, str]) -> Table:
    """A terminal table with right-aligned numbers and colored verdicts.

    Args:
        title: title above the table.
        lines: as in :class:`Results`.
        columns: as in :class:`Results`.
    """
    table = Table(title=title, box=None, padding=(0, 1, 0, 0), title_justify="left")
    words = {text for text in columns.values() if isinstance(lines[0].get(text.strip("{}")), str)}
    for name, text in columns.items():
        table.add_column(name, justify="left" if text in words else "right", no_wrap=True)
    for line in lines:
        table.add_row(*(_marked(cell, line) for cell in _cells(line, columns)))
    return table


def _marked(cell: str, line: Line) -> str:
    """The cell, in color if it is a verdict."""
    for name, colors in COLORS.items():
        if cell == line.get(name):
            return f"[{colors.get(cell, 'yellow')}]{cell}[/]"
    return cell


def origin(command: Sequence[str], options: Mapping[str, Any], commits: str, seconds: float) -> str:
    """Command, commit, date, machine and duration of a series of runs, as Markdown.

    Args:
        command: words before the options.
        options: options by name; empty and False ones are left out.
        commits: a phrase, such as ``"trained at commit 1234567"``.
        seconds: duration of all runs.
    """
    words = [word for key, value in options.items() if value for word in (f"--{key}", *_words(value))]
    return (
        f"Made by `{shlex.join([*command, *words])}`, {commits}, {datetime.now(UTC).date()}, on {_machine()}; "
        f"{seconds:.0f} s for the runs in all.\n"
    )


def _words(value: Any) -> list[str]:
    if value is True:
        return []
    items = value if isinstance(value, list | tuple) else [value]
    return [f"{item:g}" if isinstance(item, float) else str(item) for item in items]


def commit() -> str:
    """The commit of this code's checkout, with ``-dirty`` if files were changed."""
    tracked = _git(
        "ls-files", "--error-unmatch", Path(__file__).name
    )  # otherwise it is another repository that contains an installation
    found = _git("describe", "--always", "--dirty", "--abbrev=10") if tracked else None
    return found or "unknown (no git checkout)"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # git is not installed
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _machine() -> str:
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"torch {torch.__version__}, Lightning {version('pytorch-lightning')}"
    return f"{os.cpu_count()} cores ({platform.machine()}, {platform.system()}){accelerator}, {versions}"
