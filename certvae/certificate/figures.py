"""Figures of certificates against their threshold."""

import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from certvae.certificate.certificate import Certificate
from certvae.certificate.components import best_and_worst, component_names, cut_name
from certvae.certificate.curve import Curve
from certvae.io.files import write_atomic

__all__ = [
    "GOES_ON_FROM",
    "PHASE_COLORS",
    "bounds_figure",
    "certificate_figure",
    "certificates_figure",
    "components_figure",
    "draw_components",
    "pixels",
    "protocol_figure",
    "save_figure",
    "shown_axes",
]

# Okabe and Ito's palette, which color-blind readers can tell apart.
PHASE_COLORS = {
    "full": "#0072B2",
    "no_align": "#D55E00",
    "rescue": "#009E73",
    "ablate": "#CC79A7",
    "guarded": "#E69F00",
    "prefit": "#56B4E9",
}
_LABELS = {
    "full": "full: aligned from scratch",
    "no_align": "no_align: weight 0",
    "rescue": "rescue: aligned again",
    "ablate": "ablate: full, then weight 0",
    "guarded": "guarded: no_align, then the guard's weight",
    "prefit": "prefit: aligned from a fitted code",
}
# Markers and dashes distinguish the phases in grayscale.
_MARKERS = {"full": "o", "no_align": "s", "rescue": "^", "ablate": "D", "guarded": "v", "prefit": "P"}
_DASHES = {"no_align": "--", "rescue": "-.", "ablate": ":", "guarded": (0, (5, 1)), "prefit": (0, (1, 1))}
# Colors of a component's bars: teacher information, positive margin, negative margin, and the zero line.
_PARTS = {"information": "#999999", "kept": PHASE_COLORS["full"], "lost": PHASE_COLORS["no_align"], "zero": "black"}
_LOWEST, _HIGHEST = -10.0, 100.0  # nats; a component's bar is cut off at these values
GOES_ON_FROM = {"rescue": "no_align", "ablate": "full", "guarded": "no_align"}


def protocol_figure(histories: Mapping[str, Mapping[str, Sequence[Certificate]]], title: str) -> Figure:
    """Margin against epoch for each phase and seed, with the threshold.

    The phases ``rescue`` and ``guarded`` start at the end of ``no_align``, and ``ablate`` at the end of ``full``. The
    band extends down to the lower bound.

    Args:
        histories: certificates of each epoch, by seed and by phase.
        title: title of the figure.
    """
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    for number, phases in enumerate(histories.values()):
        for phase, certificates in phases.items():
            start = len(phases.get(GOES_ON_FROM.get(phase, ""), ()))
            if certificates:
                _draw(axes, phase, certificates, start, label=number == 0)
            if certificates and start:
                axes.axvline(start + 0.5, color="0.6", linewidth=1, linestyle=":")
    _decorate(axes, histories, title)
    return figure


def _draw(axes: Axes, phase: str, certificates: Sequence[Certificate], start: int, label: bool) -> None:
    epochs = [start + number for number in range(1, len(certificates) + 1)]
    margins = [certificate.margin for certificate in certificates]
    lower = [max(certificate.margin_lower, -10.0) for certificate in certificates]
    color = PHASE_COLORS.get(phase, "0.3")
    axes.plot(
        epochs,
        margins,
        color=color,
        linestyle=_DASHES.get(phase, "-"),
        marker=_MARKERS.get(phase, "."),
        markersize=6,
        markevery=max(1, len(epochs) // 8),
        zorder=3,  # a collapsed run lies on the threshold line and must be drawn over it
        label=_LABELS.get(phase, phase) if label else None,
    )
    axes.fill_between(epochs, lower, margins, color=color, alpha=0.2, linewidth=0)


def _decorate(axes: Axes, histories: Mapping[str, Mapping[str, Sequence[Certificate]]], title: str) -> None:
    every = [c for phases in histories.values() for certificates in phases.values() for c in certificates]
    axes.axhline(0, color="0.35", linewidth=1.2, label="threshold: the best constant student")
    if every:
        safety = every[0].safety_margin
        axes.axhline(safety, color="black", linewidth=0.8, linestyle="--", label=f"with safety margin {safety:g}")
        information = max(certificate.teacher_information for certificate in every)
        axes.axhline(information, color="0.5", linewidth=2.4, label="teacher information (the most)")
    present = {phase for phases in histories.values() for phase in phases}
    goes_on = [f"{phase} goes on from {before}" for phase, before in GOES_ON_FROM.items() if phase in present]
    axes.set(title=title, xlabel=f"epoch ({', '.join(goes_on)})", ylabel="raw-witness margin (nats)")
    axes.margins(x=0.02)
    low, high = axes.get_ylim()
    axes.axhspan(low, 0, color="#D55E00", alpha=0.06, linewidth=0)
    axes.set_ylim(low, high)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure atomically, in the format of the path's suffix."""
    content = BytesIO()
    figure.savefig(content, format=path.suffix[1:], dpi=150)
    return write_atomic(path, content.getvalue())


def certificate_figure(curve: Curve, title: str, axes: Axes | None = None) -> Figure:
    """Alignment loss against epoch, with the region below the teacher information where it is certified.

    A loss is certified if its upper bound, the top of the band, is in that region. Filled marks are certified, hollow
    marks are not.

    Args:
        curve: at least one validation.
        title: title of the figure.
        axes: axes to draw in; default: a new figure.
    """
    figure, axes = _canvas(axes)
    looks, epochs = curve.points, curve.positions()
    threshold, loss = [point.teacher_information for point in looks], [point.alignment_loss for point in looks]
    top = 1.1 * max(*threshold, *loss, 0.1)
    upper = [min(point.teacher_information - point.margin_lower, top) for point in looks]
    # Half an epoch wider on each side, so that a single validation has an area too.
    wide = [epochs[0] - 0.5, *epochs, epochs[-1] + 0.5]
    limits = [value - curve.safety_margin for value in (threshold[0], *threshold, threshold[-1])]
    green, blue = PHASE_COLORS["rescue"], PHASE_COLORS["full"]
    axes.fill_between(wide, 0, limits, color=green, alpha=0.15, linewidth=0, label="certified region")
    axes.fill_between(epochs, loss, upper, color=blue, alpha=0.25, linewidth=0)
    axes.plot(epochs, threshold, color="black", marker="_", label="teacher information: the threshold")
    axes.plot(epochs, loss, color=blue, label="alignment loss, up to its upper bound")
    faces = [blue if point.certified else "white" for point in looks]
    axes.scatter(epochs, loss, s=16, color=faces, edgecolors=blue, zorder=3)
    axes.set(title=title, xlabel="epoch", ylabel="nats", xlim=(wide[0], wide[-1]), ylim=(0, top))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def certificates_figure(certificates: Sequence[Certificate], axes: Axes | None = None) -> tuple[Figure, Axes]:
    """Margins with their lower bounds, between 0 and the teacher information, in the order given.

    A mark is filled if the status is ``CERTIFIED``. A bound of minus infinity is drawn to the end of the axis.

    Args:
        certificates: at least one.
        axes: axes to draw in; default: a new figure.

    Returns:
        The figure and its axes.
    """
    figure, axes = _canvas(axes)
    color, places = PHASE_COLORS["full"], range(len(certificates))
    margins = [c.margin for c in certificates]
    low = min(0.0, *margins, *(c.margin_lower for c in certificates if c.margin_lower > -math.inf))
    for place, c in zip(places, certificates, strict=True):
        lower = max(c.margin_lower, low)
        axes.plot([place, place], [lower, c.margin], color=color, linewidth=2)
        axes.plot([place - 0.3, place + 0.3], [c.teacher_information] * 2, color="black", linewidth=1)
    axes.scatter(places, margins, s=36, color=[color if c.certified else "white" for c in certificates], zorder=3)
    axes.collections[-1].set_edgecolor(color)
    axes.axhline(certificates[0].safety_margin, color="black", linewidth=0.8, linestyle="--", label="safety margin")
    axes.plot([], [], color="black", linewidth=1, label="teacher information: the most")
    axes.set(ylabel="margin, down to its lower bound (nats)", xlim=(-0.5, len(certificates) - 0.5))
    axes.set_xticks(places, [str(c.status) for c in certificates], fontsize=8)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def bounds_figure(certificate: Certificate, axes: Axes | None = None) -> tuple[Figure, Axes]:
    """The bounds of a certificate in nats: each margin with its lower bound, and the information bracket.

    An infinite bound is drawn to the end of the axis.

    Args:
        certificate: with any status.
        axes: axes to draw in; default: a new figure.

    Returns:
        The figure and its axes.
    """
    figure, axes = _canvas(axes)
    c = certificate
    spans = {
        "margin,\non the mean": (c.margin_lower, c.margin),
        "margin,\non draws": (c.channel_margin_lower, c.channel_margin),
        "a draw carries": (c.information_lower, math.inf if c.information_upper is None else c.information_upper),
    }
    known = {name: (low, high) for name, (low, high) in spans.items() if low is not None and high is not None}
    finite = [value for span in known.values() for value in span if math.isfinite(value)]
    low, high = min(0.0, *finite), max(c.teacher_information, *finite)
    room = 0.06 * (high - low) or 0.1
    blue = PHASE_COLORS["full"]
    for place, (lower, upper) in enumerate(known.values()):
        drawn = [max(lower, low - room), min(upper, high + room)]
        axes.plot(drawn, [place, place], color=blue, linewidth=4, alpha=0.4)
        axes.plot(
            [lower, upper], [place, place], color=blue, linestyle="", marker="|", markersize=14, markeredgewidth=2
        )
    axes.axvline(c.safety_margin, color="black", linewidth=0.8, linestyle="--", label="certified right of this")
    axes.axvline(c.teacher_information, color="black", linewidth=1.2, label="teacher information: the most of a margin")
    axes.set(title=f"{c.reading}, {c.status}".replace("_", " "), xlabel="nats", xlim=(low - room, high + room))
    axes.set_yticks(range(len(known)), list(known))
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def shown_axes() -> Axes:
    """Axes of a new pyplot figure, which a notebook displays automatically; other figures do not use pyplot."""
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(6.4, 4), dpi=100, layout="constrained")[1]


def _canvas(axes: Axes | None) -> tuple[Figure, Axes]:
    """The figure and the axes; a new figure if ``axes`` is None."""
    if axes is None:
        figure = Figure(figsize=(6.4, 4), dpi=100, layout="constrained")
        return figure, figure.subplots()
    found = axes.get_figure(root=True)
    assert found is not None
    return found, axes


def components_figure(certificate: Certificate, title: str = "") -> Figure:
    """Margin and teacher information of each component, best first; negative margins have another color.

    Args:
        certificate: with components.
        title: title of the figure.

    Raises:
        ValueError: if the certificate has no components, such as one from version 0.1.
    """
    if not certificate.components:
        raise ValueError("`certificate` must have components; files of version 0.1 have none. Make it again.")
    figure = Figure(figsize=(6.4, components_height(certificate)), dpi=100, layout="constrained")
    axes = figure.subplots()
    draw_components(axes, certificate, _PARTS)
    axes.set(title=title)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def components_height(certificate: Certificate) -> float:
    """Height in inches of the figure of a certificate's components."""
    return 1.4 + 0.2 * sum(map(len, best_and_worst(certificate)))


def draw_components(axes: Axes, certificate: Certificate, colors: Mapping[str, str], longest: int = 28) -> None:
    """Draw a margin bar over an information bar for each component; if there are many, the best and the worst.

    Args:
        axes: axes to draw in.
        certificate: with components.
        colors: colors of ``information``, ``kept``, ``lost`` and ``zero``.
        longest: number of characters of a name that are shown.
    """
    best, worst = best_and_worst(certificate)
    parts, names = certificate.components, component_names(certificate)
    rows = dict(
        zip([*range(len(best)), *range(len(best) + 1, len(best) + 1 + len(worst))], [*best, *worst], strict=True)
    )
    axes.barh(
        list(rows),
        [_drawn(parts[place].information) for place in rows.values()],
        height=0.8,
        color=colors["information"],
        alpha=0.4,
        label="teacher information",
    )
    for label, passes in (("kept", True), ("lost", False)):
        chosen = {row: _drawn(parts[k].margin) for row, k in rows.items() if (parts[k].margin >= 0) is passes}
        if chosen:
            axes.barh(list(chosen), list(chosen.values()), height=0.4, color=colors[label], label=f"margin, {label}")
        if chosen and not passes:
            axes.plot(list(chosen.values()), list(chosen), color=colors[label], linestyle="", marker="x", markersize=6)
    labels = {row: cut_name(names[place], longest) for row, place in rows.items()}
    if worst:
        labels[len(best)] = f"… {len(parts) - len(best) - len(worst)} between …"
    axes.set_yticks(list(labels), list(labels.values()), fontsize=8, parse_math=False)  # a name is no formula
    axes.axvline(0, color=colors["zero"], linewidth=1)
    axes.grid(False, axis="y")
    axes.set(
        xlabel="part of the margin and of the teacher information (nats)", ylim=(len(rows) + bool(worst) - 0.4, -0.6)
    )


def _drawn(nats: float) -> float:
    return min(max(nats, _LOWEST), _HIGHEST)


def pixels(figure: Figure) -> np.ndarray:
    """A figure as an image, uint8, shape ``(height, width, 3)``."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
