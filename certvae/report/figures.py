"""The report's figures, each with a text alternative, and as files on request."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from certvae.certificate.certificate import Certificate
from certvae.certificate.components import best_and_worst, component_names, kept_components, lost_components
from certvae.certificate.figures import components_height, draw_components
from certvae.io.files import write_atomic
from certvae.report.colors import LIGHT, SERIES
from certvae.report.runs import Phase, Run
from certvae.report.svg import STYLE, inline_svg
from certvae.report.wording import MINUS, number, status_name

__all__ = [
    "FORMATS",
    "Chart",
    "alignment_chart",
    "blank",
    "channel_chart",
    "components_charts",
    "finished",
    "information_chart",
    "margin_chart",
    "path_chart",
    "series",
    "use_chart",
]

FORMATS = ("png", "pdf", "svg")
WIDTH = 4.4  # inches, 317 points: text keeps its size on a phone
POINTS = 400  # largest number of drawn points per curve
MARKED = 50  # curves with more points have no markers
LOWEST, HIGHEST = -10.0, 1e4  # nats; bounds from few rows may be lower and would flatten every curve
LONGEST_NAME = 18  # characters of a component's name next to its bar
MARKERS = "os^Dvp"
_MARK: dict[str, Any] = {
    "linestyle": "",
    "markersize": 9,
    "markerfacecolor": "none",
    "markeredgewidth": 1.8,
}  # others are transparent


@dataclass(frozen=True)
class Chart:
    """A figure with its file name and text alternative.

    Attributes:
        name: file name.
        figure: the matplotlib figure.
        alt: text alternative, in words and numbers.
    """

    name: str
    figure: Figure
    alt: str

    def svg(self, prefix: str) -> Markup:
        """The figure as SVG for the page; ``prefix`` must be unique in the page."""
        return inline_svg(self.figure, prefix, self.alt)

    def save(self, folder: Path, form: str) -> Path:
        """Write the figure as ``png``, ``pdf`` or ``svg``; equal figures give equal bytes."""
        content = BytesIO()
        metadata: dict[str, Any] = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[
            form
        ]
        with rc_context(STYLE):
            self.figure.savefig(content, format=form, dpi=200, facecolor=LIGHT["surface"], metadata=metadata)
        return write_atomic(folder / f"{self.name}.{form}", content.getvalue())


def _styled(draw: Callable[..., Chart | None]) -> Callable[..., Chart | None]:
    @wraps(draw)
    def styled(*args: object) -> Chart | None:
        with rc_context(STYLE):
            return draw(*args)

    return styled


def _style(run: Run, phase: Phase) -> dict[str, Any]:
    """Color and marker of a phase, by its position among the phase names of its run; equal for all seeds."""
    place = list(dict.fromkeys(item.name for item in run.phases)).index(phase.name)
    return {"color": LIGHT[SERIES[place % len(SERIES)]], "marker": MARKERS[place % len(MARKERS)]}


def _drawn(nats: float) -> float:
    return min(max(nats, LOWEST), HIGHEST)


def _short(text: str, most: int = 28) -> str:
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return f" {text}" if text.startswith("_") else text  # matplotlib omits labels that start with an underscore


def _thin(history: Sequence[Certificate], start: int) -> Iterator[tuple[int, Certificate]]:
    """At most ``POINTS`` validations with their numbers, including the last one."""
    step = math.ceil(len(history) / POINTS) or 1
    for place in range((len(history) - 1) % step, len(history), step):
        yield start + place + 1, history[place]


def _curve(axes: Axes, run: Run, phase: Phase, name: str, labeled: bool) -> bool:
    """Draw one field of a phase's history; return whether it has values."""
    points = [(x, value) for x, c in _thin(phase.history, phase.start) if (value := getattr(c, name)) is not None]
    if not points:
        return False
    style = _style(run, phase) | ({} if len(points) <= MARKED else {"marker": "none"})
    x, y = zip(*points, strict=True)
    axes.plot(x, [_drawn(value) for value in y], label=_short(phase.name) if labeled else None, **style)
    return True


def _first_of_name(run: Run, phase: Phase) -> bool:
    return phase is next(item for item in run.phases if item.name == phase.name)


def _legend(figure: Figure, axes: Axes) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=1.6)


def _starts(axes: Axes, run: Run) -> None:
    for start in sorted({phase.start for phase in run.phases if phase.start}):
        axes.axvline(start + 0.5, color=LIGHT["axis"], linewidth=0.9, linestyle=":")


def _whole_x(axes: Axes, run: Run) -> None:
    axes.set_xlim(0, 1.02 * max(phase.start + len(phase.history) for phase in run.phases) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _range(values: Iterable[float | None], *others: float) -> tuple[float, float]:
    """Axis limits that contain all values, with a margin; the same for every run of a report."""
    finite = [_drawn(value) for value in [*values, *others] if value is not None]
    low, high = min(finite), max(finite)
    room = 0.06 * (high - low) or 0.1
    return low - room, high + room


def _all(runs: Sequence[Run]) -> list[Certificate]:
    """All certificates of the report: those of the curves and the final ones."""
    phases = [phase for run in runs for phase in run.phases]
    return [c for phase in phases for c in (*phase.history, phase.certificate)]


@_styled
def margin_chart(run: Run, runs: Sequence[Run]) -> Chart | None:
    """Margin against validations, with its confidence band and the threshold; None without a curve."""
    if not any(phase.history for phase in run.phases):
        return None
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    axes = figure.subplots()
    for phase in run.phases:
        if _curve(axes, run, phase, "margin", _first_of_name(run, phase)):
            x, points = zip(*_thin(phase.history, phase.start), strict=True)
            lower, margin = [_drawn(c.margin_lower) for c in points], [_drawn(c.margin) for c in points]
            axes.fill_between(x, lower, margin, color=_style(run, phase)["color"], alpha=0.22, linewidth=0)
    every = _all([run])
    safety, information = every[-1].safety_margin, max(c.teacher_information for c in every)
    axes.axhline(0, color=LIGHT["ink"], linewidth=1.3, label="threshold: constant code")
    axes.axhline(safety, color=LIGHT["ink"], linewidth=0.9, linestyle="--", label=f"safety margin {safety:g}")
    axes.axhline(information, color=LIGHT["muted"], linewidth=0.9, linestyle="-.", label="teacher information")
    _starts(axes, run)
    _whole_x(axes, run)
    scale = _all(runs)
    values = [*(c.margin for c in scale), *(c.margin_lower for c in scale), *(c.teacher_information for c in scale)]
    axes.set(xlabel="validations in training", ylabel="margin (nats)", ylim=_range(values, 0.0))
    axes.axhspan(axes.get_ylim()[0], 0, color=LIGHT["series1"], alpha=0.09, linewidth=0)
    _legend(figure, axes)
    ends = "; ".join(
        f"{phase.label}: from {number(phase.history[0].margin)} to {number(phase.history[-1].margin)}, at least "
        f"{number(phase.history[-1].margin_lower)}"
        for phase in run.phases
        if phase.history
    )
    return Chart("margin", figure, f"Margin in nats over training, threshold 0, at most {number(information)}. {ends}.")


@_styled
def alignment_chart(run: Run, runs: Sequence[Run]) -> Chart | None:
    """Alignment loss against teacher information of every certificate; the diagonal is the threshold."""
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    axes = figure.subplots()
    every = [phase.certificate for item in runs for phase in item.phases]
    most = 1.1 * max(max(c.teacher_information for c in every), 0.1)
    top = max(most, 1.05 * max(_drawn(c.alignment_loss) for c in every))
    for phase in run.phases:
        c, style = phase.certificate, _style(run, phase)
        label = _short(phase.name) if _first_of_name(run, phase) else None
        axes.plot(c.teacher_information, _drawn(c.alignment_loss), label=label, **_MARK, **style)
    axes.plot([0, most], [0, most], color=LIGHT["ink"], linewidth=1.3, label="threshold: constant code")
    axes.fill_between([0, most], [0, most], [top, top], color=LIGHT["series1"], alpha=0.09, linewidth=0)
    axes.set(xlim=(0, most), ylim=(0, top), xlabel="teacher information (nats)", ylabel="alignment loss (nats)")
    _legend(figure, axes)
    points = "; ".join(
        f"{phase.label}: loss {number(phase.certificate.alignment_loss)} of {number(c.teacher_information)}, "
        f"{status_name(c.status)}"
        for phase in run.phases
        for c in [phase.certificate]
    )
    return Chart(
        "alignment", figure, f"Alignment loss against teacher information; below the diagonal is better. {points}."
    )


@_styled
def path_chart(run: Run, runs: Sequence[Run]) -> Chart | None:
    """Alignment loss against witness information over the validations; None without a curve."""
    drawn = [phase for phase in run.phases if phase.history]
    if not drawn:
        return None
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    axes = figure.subplots()
    for phase in drawn:
        _path(axes, _style(run, phase), phase, _first_of_name(run, phase))
    information = max(c.teacher_information for phase in drawn for c in phase.history)
    axes.axhline(information, color=LIGHT["ink"], linewidth=1.3, label="threshold: constant code")
    scale = [c for item in runs for phase in item.phases for c in phase.history]
    axes.set(
        xlim=_range([c.witness_information for c in scale], 0.0),
        ylim=_range([c.alignment_loss for c in scale], 0.0, information),
        xlabel="witness information (nats)",
        ylabel="alignment loss (nats)",
    )
    _legend(figure, axes)
    ends = "; ".join(
        f"{phase.label} ends at loss {number(phase.history[-1].alignment_loss)}, witness information "
        f"{number(phase.history[-1].witness_information)}"
        for phase in drawn
    )
    return Chart("path", figure, f"Alignment loss against witness information over training. {ends}.")


def _path(axes: Axes, style: dict[str, Any], phase: Phase, labeled: bool) -> None:
    points = [(c.witness_information, _drawn(c.alignment_loss)) for _, c in _thin(phase.history, 0)]
    x, y = zip(*points, strict=True)
    axes.plot(x, y, color=style["color"], linewidth=1.2, alpha=0.8)
    axes.plot(x[0], y[0], linestyle="", markersize=6, markerfacecolor=LIGHT["surface"], **style)
    axes.plot(x[-1], y[-1], linestyle="", markersize=8, label=_short(phase.name) if labeled else None, **style)


@_styled
def channel_chart(run: Run, runs: Sequence[Run]) -> Chart | None:
    """Rate and channel margin over training; None if the code has no known noise."""
    figure = Figure(figsize=(WIDTH, 4.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, name in ((upper, "rate"), (lower, "channel_margin")):
        drawn = [_curve(axes, run, phase, name, _first_of_name(run, phase)) for phase in run.phases]
        if not any(drawn):
            return None
        scale = [getattr(c, name) for other in runs for phase in other.phases for c in phase.history]
        axes.set(ylabel=f"{name.replace('_', ' ')} (nats)", ylim=_range(scale, 0.0))
        _starts(axes, run)
    lower.axhline(0, color=LIGHT["ink"], linewidth=1.3, label="threshold: constant code")
    lower.axhspan(lower.get_ylim()[0], 0, color=LIGHT["series1"], alpha=0.09, linewidth=0)
    lower.set(xlabel="validations in training")
    _whole_x(lower, run)
    _legend(figure, lower)
    ends = "; ".join(
        f"{phase.label} ends at rate {number(phase.history[-1].rate)}, channel margin "
        f"{number(phase.history[-1].channel_margin)}"
        for phase in run.phases
        if phase.history
    )
    return Chart("channel", figure, f"Rate and channel margin in nats over training, threshold 0. {ends}.")


@_styled
def information_chart(run: Run, runs: Sequence[Run]) -> Chart | None:
    """Bounds on the information in the code over training, with the margin; None if no history has them."""
    drawn = [phase for phase in run.phases if any(c.information is not None for c in phase.history)]
    if not drawn:
        return None
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    axes = figure.subplots()
    for phase in drawn:
        _bracket(axes, run, phase)
    axes.plot([], [], color=LIGHT["muted"], linewidth=1.2, linestyle="--", label="margin")
    _starts(axes, run)
    _whole_x(axes, run)
    axes.axhline(0, color=LIGHT["ink"], linewidth=1.3)
    scale = [c for item in runs for phase in item.phases for c in phase.history]
    values = [value for c in scale for value in (c.information_lower, c.information_upper, c.margin)]
    axes.set(xlabel="validations in training", ylabel="carried by the code (nats)", ylim=_range(values, 0.0))
    _legend(figure, axes)
    ends = "; ".join(f"{phase.label} ends {_span(phase.history[-1])}" for phase in drawn)
    return Chart("information", figure, f"What the noisy code carries over training, in nats, with the margin. {ends}.")


def _bracket(axes: Axes, run: Run, phase: Phase) -> None:
    """A phase's band from the lower to the upper side, or the lower side alone if the upper is infinite."""
    known = [(x, c) for x, c in _thin(phase.history, phase.start) if c.information_lower is not None]
    both = [
        (x, _drawn(c.information_lower or 0.0), _drawn(c.information_upper))
        for x, c in known
        if c.information_upper is not None
    ]
    style = _style(run, phase)
    if both:
        x, lower, upper = zip(*both, strict=True)
        axes.fill_between(x, lower, upper, color=style["color"], alpha=0.22, linewidth=0)
        axes.plot(x, upper, color=style["color"], linewidth=0.9)
    _curve(axes, run, phase, "information_lower", _first_of_name(run, phase))
    x, margin = zip(*((x, _drawn(c.margin)) for x, c in known), strict=True)
    axes.plot(x, margin, color=style["color"], linewidth=1.2, linestyle="--")


def _span(c: Certificate) -> str:
    known = "unknown" if c.information is None else c.information.span().replace("-", MINUS)
    return f"{known}, margin {number(c.margin)}"


def blank() -> tuple[Figure, Axes]:
    """An empty figure in the report's style, with its axes."""
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
        return figure, figure.subplots()


def series(axes: Axes, run: Run, phase: Phase, points: Sequence[tuple[float, float]]) -> None:
    """Draw a curve of a phase in its color, with markers if it has few points."""
    step = math.ceil(len(points) / POINTS) or 1
    x, y = zip(*points[(len(points) - 1) % step :: step], strict=True)
    style = _style(run, phase) | ({} if len(x) <= MARKED else {"marker": "none"})
    with rc_context(STYLE):
        axes.plot(x, y, label=_short(phase.name) if _first_of_name(run, phase) else None, **style)


def finished(figure: Figure, axes: Axes, run: Run) -> None:
    """Mark where fits continue from others, and add the legend."""
    with rc_context(STYLE):
        _starts(axes, run)
        _legend(figure, axes)


def components_charts(run: Run) -> list[tuple[Phase, Chart]]:
    """Margin of each component, for phases of the first seed whose certificate has components."""
    shown = [phase for phase in run.shown if phase.certificate.components]
    charts = []
    for place, phase in enumerate(shown):
        name = re.sub(r"[^\w.-]+", "_", phase.name)[:50]
        file = "components" if len(shown) == 1 else f"components_{place}_{name}"
        charts.append((phase, _components_chart(file, phase)))
    return charts


def _components_chart(file: str, phase: Phase) -> Chart:
    c = phase.certificate
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, components_height(c)), layout="constrained")
        axes = figure.subplots()
        colors = {
            "information": LIGHT["axis"],
            "kept": LIGHT["series0"],
            "lost": LIGHT["series1"],
            "zero": LIGHT["ink"],
        }
        draw_components(axes, c, colors, LONGEST_NAME)
        axes.set(xlabel="part of the margin (nats)")
        _legend(figure, axes)
    lost, names = set(lost_components(c)), component_names(c)
    best, worst = best_and_worst(c)
    said = "; ".join(
        f"{names[place]}: {number(c.components[place].margin)} of {number(c.components[place].information)}"
        f"{', lost' if place in lost else ''}"
        for place in (*best, *worst)
    )
    counts = f"{len(kept_components(c))} of {len(c.components)} are above 0, {len(lost)} are lost"
    return Chart(file, figure, f"Margin by component, of the teacher information: {counts}. {said}.")


@_styled
def use_chart(shares: Sequence[float]) -> Chart | None:
    """Share of the rows of each component of a teacher."""
    figure = Figure(figsize=(WIDTH, 2.5), layout="constrained")
    axes = figure.subplots()
    numbers = range(len(shares))
    if len(shares) <= POINTS:
        axes.bar(numbers, [100 * share for share in shares], color=LIGHT["series0"])
    else:
        axes.plot(numbers, [100 * share for share in shares], color=LIGHT["series0"], linewidth=0.8)
    axes.axhline(100 / len(shares), color=LIGHT["ink"], linewidth=1, linestyle="--", label="equal use")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="component", ylabel="use (%)")
    _legend(figure, axes)
    alt = (
        f"Use of the teacher's {len(shares)} components: from {100 * min(shares):.1f} % to {100 * max(shares):.1f} %; "
        f"equal use would be {100 / len(shares):.1f} %."
    )
    return Chart("use", figure, alt)
