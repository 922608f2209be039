"""The style of the studies' figures: readable in gray and at half size, with a title that states the result.

Series never differ by color alone: each also has its own marker, and lines have their own dash pattern.
"""

import csv
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

__all__ = ["FIRST", "SECOND", "THIRD", "Look", "legend_below", "new_figure", "read_table", "styled"]

STYLE: Any = {  # Matplotlib types the keys one by one
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "legend.fontsize": 11,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 6.5,
}
WORDS: Mapping[str, Any] = {"True": True, "False": False, "None": None, "": None}
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Look:
    """The style of one series.

    Attributes:
        color: color of lines and marks.
        marker: Matplotlib marker.
        line: Matplotlib line style.
    """

    color: str
    marker: str
    line: str

    def style(self, filled: bool = True) -> dict[str, Any]:
        """Arguments of ``Axes.plot``."""
        face = self.color if filled else "white"
        edge = {"markerfacecolor": face, "markeredgecolor": self.color, "markeredgewidth": 1.5}
        return {"color": self.color, "marker": self.marker, "linestyle": self.line, **edge}


# Okabe and Ito's blue, and two of their colors that are lighter and lighter in gray.
FIRST, SECOND, THIRD = Look("#0072B2", "o", "-"), Look("#D55E00", "s", "--"), Look("#3FB28B", "^", ":")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Decorate a drawing function to use :data:`STYLE`."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def new_figure(
    title: str, width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """An empty figure with its panels in reading order; sizes in inches.

    Args:
        title: what the figure shows.
        width: width in inches, at most 9.5, so that text stays readable at half size.
        height: height in inches.
        rows: rows of panels.
        columns: columns of panels.
        options: arguments of ``Figure.subplots``.
    """
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.01, ha="left")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).ravel())


def legend_below(figure: Figure, looks: Iterable[tuple[str, Mapping[str, Any]]], columns: int) -> None:
    """One legend below all panels.

    Args:
        figure: the figure.
        looks: text and ``Line2D`` arguments of each entry.
        columns: columns of the legend.
    """
    entries = [Line2D([], [], **{**style, "label": label}) for label, style in looks]
    figure.legend(handles=entries, loc="outside lower left", ncols=columns)


def read_table(path: Path) -> list[dict[str, Any]]:
    """The lines of a CSV file, with numbers, booleans and None restored."""
    with open(path, newline="") as file:
        return [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return WORDS.get(text, text)
