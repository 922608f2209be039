"""The study in one figure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from coverage_cells import SIZES
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from populations import ALPHA
from repetitions import METHODS
from scipy.stats import binom

from experiments.drawing import new_figure, styled

__all__ = ["draw"]

# Okabe and Ito's palette, which color-blind readers can tell apart.
_COLORS = {"normal": "#D55E00", "hoeffding": "#0072B2", "bernstein": "#3FB28B"}
_MARKERS = {"normal": "o", "hoeffding": "s", "bernstein": "^"}
_WITNESS_COLORS = {
    "best_constant": "#000000",
    "other_constant": "#56B4E9",
    "independent": "#CC79A7",
    "faint": "#E69F00",
}
_WITNESS_MARKERS = {"best_constant": "o", "other_constant": "s", "independent": "^", "faint": "D"}
_TICKS = (0, 0.01, 0.05, 0.1, 0.2, 0.5, 1)
Rows = Sequence[dict[str, Any]]


@styled
def draw(tables: Mapping[str, Rows]) -> Figure:
    """Error rates against the promise, and what rigor costs.

    Args:
        tables: the study's tables by name.
    """
    title = "Proved bounds keep their promise; the normal one does not where errors are rare"
    figure, axes = new_figure(title, 9.5, 8.4, 2, 2)
    _draw_errors(axes[0], tables["coverage"])
    _draw_gaps(axes[1], tables["coverage"])
    _draw_rejections(axes[2], tables["permutation"])
    _draw_looks(axes[3], tables["looks"])
    for panel in axes:
        panel.legend(fontsize=10, loc="lower left" if panel is axes[1] else "upper right")
    return figure


def _draw_errors(axes: Axes, rows: Rows) -> None:
    for shift, method in zip((-0.26, 0, 0.26), METHODS, strict=True):
        for rare, marker in ((False, _MARKERS[method]), (True, "x")):
            cells = [row for row in rows if row["method"] == method and (row["witness"] == "rare") == rare]
            points = [(SIZES.index(row["n"]) + shift, row["errors"] / row["repetitions"]) for row in cells]
            label = method + (", rare gross errors" if rare else "") if method == "normal" or not rare else None
            _scatter(axes, points, _COLORS[method], marker, label)
    _error_axis(axes, [f"{size:,}" for size in SIZES])
    axes.set(title="Wrong bound: 95 % lower bound above the margin", xlabel="rows n")
    axes.set_ylabel("error rate, one mark a cell")


def _draw_gaps(axes: Axes, rows: Rows) -> None:
    for method in METHODS:
        gaps = [[row["mean_gap"] for row in rows if row["method"] == method and row["n"] == size] for size in SIZES]
        low, middle, high = np.array([np.quantile(values, (0.1, 0.5, 0.9)) for values in gaps]).T
        axes.plot(SIZES, middle, color=_COLORS[method], marker=_MARKERS[method], label=f"{method}, median cell")
        axes.fill_between(SIZES, low, high, color=_COLORS[method], alpha=0.15, linewidth=0)
    axes.set(xscale="log", yscale="log", title="Width: margin less mean lower bound")
    axes.set(xlabel="rows n", ylabel="nats (band: 10 % to 90 % of the cells)")
    axes.set_xticks(SIZES, [f"{size:,}" for size in SIZES])
    axes.minorticks_off()


def _draw_rejections(axes: Axes, rows: Rows) -> None:
    for number, (witness, color) in enumerate(_WITNESS_COLORS.items()):
        cells = [row for row in rows if row["witness"] == witness]
        shift = (number - 1.5) * 0.18
        points = [(SIZES.index(row["n"]) + shift, row["rejections"] / row["repetitions"]) for row in cells]
        _scatter(axes, points, color, _WITNESS_MARKERS[witness], witness.replace("_", " "))
    trials = rows[0]["repetitions"]
    low, high = binom.interval(0.95, trials, ALPHA)
    axes.axhspan(
        low / trials, high / trials, color="0.88", linewidth=0, zorder=0, label="5 % with 95 % simulation error"
    )
    axes.axhline(ALPHA, color="black", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(SIZES)), [f"{size:,}" for size in SIZES])
    axes.set(title="Permutation test, witnesses that ignore the input", xlabel="rows n", ylim=(-0.004, 0.15))
    axes.set_ylabel("rejection rate at 5 %, one mark a cell")


def _draw_looks(axes: Axes, rows: Rows) -> None:
    groups = [(schedule, method) for schedule in ("none", "spending") for method in METHODS]
    for position, (schedule, method) in enumerate(groups):
        for witness, marker in (("untrained", "o"), ("training", "^"), ("rare", "x")):
            wanted = {"schedule": schedule, "method": method, "witness": witness}
            cells = [row for row in rows if wanted.items() <= row.items()]
            points = [(position, row["errors"] / row["runs"]) for row in cells]
            _scatter(axes, points, _COLORS[method], marker, f"{witness} witness" if position == 0 else None)
    names = [f"{method}\n{'at 5 %' if schedule == 'none' else 'spending'}" for schedule, method in groups]
    _error_axis(axes, names)
    axes.tick_params(axis="x", labelsize=9)
    axes.set(title="Any error in a run of 50 looks", ylabel="share of runs, one mark a cell")


def _scatter(axes: Axes, points: Iterable[tuple[float, float]], color: str, marker: str, label: str | None) -> None:
    """Marks that are spread sideways in order, so that equal values stay countable."""
    x, y = np.array(sorted(points, key=lambda point: point[0])).T
    spread = np.tile(np.linspace(-0.06, 0.06, 9), len(x))[: len(x)]
    axes.scatter(x + spread, y, s=16, color=color, marker=marker, alpha=0.7, linewidths=1, label=label)


def _error_axis(axes: Axes, names: Sequence[str]) -> None:
    axes.axhline(ALPHA, color="black", linewidth=0.8, linestyle="--", label="promised: at most 5 %")
    axes.set_yscale("symlog", linthresh=0.01, linscale=0.5)
    axes.set_ylim(-0.003, 2.2)
    axes.set_yticks(_TICKS, [f"{tick:.0%}" for tick in _TICKS])
    axes.minorticks_off()
    axes.set_xticks(range(len(names)), names)
