"""Builds the HTML page of a report from its runs."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from certvae.certificate.certificate import Certificate, Reading, Status
from certvae.commands.certify import CONFIG_LIMIT
from certvae.io.untrusted import read_limited
from certvae.report.colors import DARK, LIGHT, css_variables
from certvae.report.figures import (
    Chart,
    alignment_chart,
    channel_chart,
    components_charts,
    information_chart,
    margin_chart,
    path_chart,
)
from certvae.report.gallery import Gallery
from certvae.report.losses import loss_chart
from certvae.report.runs import Phase, Run, readable
from certvae.report.settings import settings_table
from certvae.report.wording import (
    DASH,
    MINUS,
    headline,
    limits,
    number,
    read_as,
    sentence,
    status_name,
    unknown_confidence,
    what_it_is,
)

__all__ = ["Report", "make_report"]

LONGEST = 400  # characters of a provenance value
LOOK = {
    Status.CERTIFIED: ("good", "✓"),
    Status.NOT_CERTIFIED: ("warn", DASH),
    Status.VACUOUS: ("warn", DASH),
    Status.LEAKING: ("bad", "✕"),
    Status.PARTIAL: ("warn", DASH),
}
READ = {
    Reading.ALIGNED: "good",
    Reading.INFORMATIVE: "good",
    Reading.COLLAPSED: "bad",
    Reading.UNDECIDED: "warn",
}


@dataclass
class Report:
    """A finished report.

    Attributes:
        html: HTML of the page.
        headline: verdict in one sentence.
        charts: figures by run.
        left_out: sentences on items that could not be made.
    """

    html: str
    headline: str
    charts: dict[str, list[Chart]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Section:
    """Figures of one kind, one per run; ``what`` explains the figure.

    A section with an empty ``absent`` is left out if no run has its figure.
    """

    name: str
    title: str
    what: str
    absent: str
    draw: Callable[[Run, Sequence[Run]], Chart | None]


SECTIONS = (
    _Section(
        "margin",
        "Margin",
        "The margin is how much better the witness predicts the teacher than the best constant. A run is certified if "
        "the lower edge of its band is above the dashed line. The margin is at most the teacher's information.",
        "No curve: the folder holds no history of validations.",
        margin_chart,
    ),
    _Section(
        "information",
        "What the code carries",
        "The noisy code carries at least as much information about the input as the lower edge of the band shows, and "
        "at most the upper edge, whatever the teacher is. The dashed margin is what the witness predicts of the "
        "teacher's outputs from the mean.",
        "",
        information_chart,
    ),
    _Section(
        "channel",
        "Rate and channel margin",
        "The rate is the most that the noisy code can carry. The channel margin is the margin of the same witness on "
        "noisy draws, which the decoder receives. It is often below 0 although the mean is certified, because the "
        "witness is overconfident on noise.",
        "No curve: there is no history, or the model's code has no known noise.",
        channel_chart,
    ),
    _Section(
        "loss",
        "Validation loss",
        "The loss that the model minimizes. It can be low although the code has collapsed.",
        "",
        loss_chart,
    ),
    _Section(
        "alignment",
        "Alignment against information",
        "Each mark is a final certificate: the alignment loss against the teacher information. On the line, the "
        "witness is no better than a constant; the margin is the distance below the line.",
        "",
        alignment_chart,
    ),
    _Section(
        "path",
        "The way there",
        "From the first validation (hollow) to the last (filled): the alignment loss against the witness information. "
        "A constant code ends at the left, on the line.",
        "No curve: the folder holds no history of validations.",
        path_chart,
    ),
)


def make_report(runs: Sequence[Run], data_dir: str | None = None, with_images: bool = True) -> Report:
    """Make the report of one run, or a report that compares several runs.

    Args:
        runs: from :func:`certvae.report.runs.read_runs`.
        data_dir: data folder, instead of the YAMLs' values.
        with_images: whether to build model and data, which runs the classes that the YAML names.

    Returns:
        The report; equal runs and files give equal bytes.
    """
    phases = [phase for run in runs for phase in run.phases]
    report = Report("", headline(phases))
    every = [(section, [_figure(report, section, run, runs) for run in runs]) for section in SECTIONS]
    sections = [(section, figures) for section, figures in every if section.absent or any(f["svg"] for f in figures)]
    components = [_components(report, run, number) for number, run in enumerate(runs)]
    columns = COLUMNS if all(read_as(phase.certificate) is None for phase in phases) else READING_COLUMNS + COLUMNS
    galleries = [Gallery(run, data_dir, with_images) for run in runs]
    for gallery in galleries:
        report.left_out += [
            f"{gallery.run.name}: {reason}" for reason in (*gallery.without_card, *gallery.without_images)
        ]
        if gallery.use is not None:
            report.charts.setdefault(gallery.run.name, []).append(gallery.use)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    report.html = environment.get_template("page.html").render(
        title=", ".join(run.dataset or run.name for run in runs),
        headline=report.headline,
        verdicts=[_verdict(run, phase, len(runs) > 1) for run in runs for phase in run.phases],
        limits=limits(phases),
        settings=settings_table(*_compared(runs)),
        sections=sections,
        components=components if any(item["figures"] for item in components) else [],
        galleries=galleries,
        runs=runs,
        columns=[name for name, _, _ in columns],
        meanings=[meaning for _, meaning, _ in columns],
        rows=[_row(run, phase, columns) for run in runs for phase in run.phases],
        provenance=[_provenance(run, phase, len(runs) > 1) for run in runs for phase in run.phases],
        light=Markup(css_variables(LIGHT)),
        dark=Markup(css_variables(DARK)),
        version=version("certvae"),
    )
    return report


def _compared(runs: Sequence[Run]) -> tuple[list[Phase], list[str]]:
    """The fits whose settings are compared (the first seed of each run) and their labels."""
    shown = [(run, phase) for run in runs for phase in run.shown]
    several = len(runs) > 1
    labels = [f"{run.name}: {phase.name}" if several and run.name != phase.name else phase.name for run, phase in shown]
    return [phase for _, phase in shown], labels


def _figure(report: Report, section: _Section, run: Run, runs: Sequence[Run]) -> dict[str, Any]:
    chart = section.draw(run, runs)
    if chart is None:
        return {"run": run, "svg": None}
    report.charts.setdefault(run.name, []).append(chart)
    return {"run": run, "svg": chart.svg(f"{section.name}{runs.index(run)}")}


def _components(report: Report, run: Run, number: int) -> dict[str, Any]:
    """The component figures of a run, each with its phase."""
    figures = []
    for place, (phase, chart) in enumerate(components_charts(run)):
        report.charts.setdefault(run.name, []).append(chart)
        figures.append({"phase": phase, "svg": chart.svg(f"components{number}-{place}")})
    return {"run": run, "figures": figures}


def _verdict(run: Run, phase: Phase, several: bool) -> dict[str, Any]:
    kind, symbol = LOOK[phase.certificate.status]
    return {
        "first": phase in run.shown,
        "what": what_it_is(phase),
        "short": _short(phase.certificate),
        "label": f"{run.name}: {phase.label}" if several else phase.label,
        "status": status_name(phase.certificate.status),
        "kind": kind,
        "symbol": symbol,
        "sentence": sentence(phase.certificate, phase.split),
        "channel": _channel(phase.certificate),
        "reading": _reading(phase.certificate),
    }


def _short(c: Certificate) -> str:
    """One line with the margin and the information in a draw."""
    carried = "" if c.information is None else f"; a draw of the code carries {c.information.span()}"
    said = (
        f"margin {number(c.margin)} of {number(c.teacher_information)} nats, at least {number(c.margin_lower)}{carried}"
    )
    return said.replace("-", MINUS)


def _reading(c: Certificate) -> dict[str, Any] | None:
    """Reading, information bracket and diagnosis; None for a certificate of version 0.1."""
    if read_as(c) is None:
        return None
    diagnosis = c.diagnose()
    lines = [f"Margin {number(c.margin)} nats of {number(c.teacher_information)}, at least {number(c.margin_lower)}."]
    if c.information is not None:
        lines.append(f"T{c.information.line()[1:]}.")
    elif c.fitted is not None:
        lines.append(f"A fitted reader {c.fitted.line()}.")
    return {
        "name": str(c.reading),
        "kind": READ[c.reading],
        "meaning": c.reading.meaning,
        "numbers": " ".join(lines).replace("-", MINUS),
        "finding": diagnosis.finding,
        "cure": diagnosis.cure,
    }


def _channel(c: Certificate) -> str:
    """The result of the same test on noisy draws, which the verdict on the mean does not cover."""
    if c.channel_margin is None or c.channel_margin_lower is None:
        return "Nothing is known about noisy draws of the code: no noise was measured."
    shown = "the same test is passed too" if c.channel_margin_lower > c.safety_margin else "the same test is not passed"
    calibrated = ""
    if c.calibrated_channel_margin is not None:
        calibrated = f", calibrated {number(c.calibrated_channel_margin)}"
    rate = "" if c.rate is None else f"; the rate is {number(c.rate)} nats"
    return (
        f"On noisy draws of the code {shown}: channel margin {number(c.channel_margin)} nats, at least "
        f"{number(c.channel_margin_lower)}{calibrated}{rate}."
    )


COLUMNS: tuple[tuple[str, str, Callable[[Certificate], str]], ...] = (
    ("margin", "teacher information less alignment loss, on the mean of the code", lambda c: number(c.margin)),
    ("at least", "lower bound of the margin", lambda c: number(c.margin_lower)),
    ("I_T", "teacher information: the threshold", lambda c: number(c.teacher_information)),
    ("A", "alignment loss", lambda c: number(c.alignment_loss)),
    ("channel", "the margin on noisy draws of the code", lambda c: number(c.channel_margin)),
    ("calibrated", "the channel margin of a calibrated witness", lambda c: number(c.calibrated_channel_margin)),
    ("rate", "the most that noisy draws can carry", lambda c: number(c.rate)),
    ("I_S", "witness information: near 0 where the code tells nothing", lambda c: number(c.witness_information)),
    ("p", "of the permutation test", lambda c: DASH if c.p_value is None else f"{c.p_value:.2g}"),
    ("rows", "inputs measured", lambda c: f"{c.num_samples:,}"),
    ("method", "of the lower bounds", lambda c: _method(c)),
)


READING_COLUMNS: tuple[tuple[str, str, Callable[[Certificate], str]], ...] = (
    ("reading", "whether the code carries anything at all", lambda c: read_as(c) or DASH),
    ("code", "nats that a draw of the code carries, from at least to at most", lambda c: _sides(c)),
)


def _method(c: Certificate) -> str:
    return f"{c.method}, few rows" if unknown_confidence(c) else f"{c.method}, {100 * c.confidence:.10g} %"


def _sides(c: Certificate) -> str:
    if c.information_lower is None:
        return DASH
    most = "\N{INFINITY}" if c.information_upper is None else number(c.information_upper)
    return f"{number(c.information_lower)} to {most}"


def _row(run: Run, phase: Phase, columns: Sequence[tuple[str, str, Callable[[Certificate], str]]]) -> dict[str, Any]:
    c = phase.certificate
    kind, symbol = LOOK[c.status]
    return {
        "run": run.name,
        "seed": phase.seed or DASH,
        "phase": phase.name,
        "split": phase.split,
        "status": status_name(c.status),
        "kind": kind,
        "symbol": symbol,
        "values": [value(c) for _, _, value in columns],
    }


def _provenance(run: Run, phase: Phase, several: bool) -> dict[str, Any]:
    values = {"file": str(phase.path), "status": str(phase.certificate.status), **phase.certificate.provenance}
    return {
        "label": f"{run.name}: {phase.label}" if several else phase.label,
        "values": [(_value(name), _value(value)) for name, value in values.items()],
        "commands": _commands(phase),
        "config": _config(phase),
    }


def _value(value: Any) -> str:
    text = readable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _config(phase: Phase) -> str:
    try:
        path = phase.config
        return "" if path is None else read_limited(path, CONFIG_LIMIT, "YAML").decode(errors="replace")
    except ValueError as error:
        return str(error)


def _commands(phase: Phase) -> list[str]:
    """Commands that recompute a published certificate, or else make one that can be recomputed."""
    try:
        files = {"--ckpt": phase.checkpoint, "--teacher": phase.teacher, "--config": phase.config}
    except ValueError:  # links out of the folder are not followed
        files = {"--config": None}
    inputs = " ".join(f"{name} {shlex.quote(str(path))}" for name, path in files.items())
    complete, path = None not in files.values(), shlex.quote(str(phase.path))
    if complete and "checkpoint_sha256" in phase.certificate.provenance:
        return [f"certvae verify {path} {inputs}"]
    commands = [f"certvae verify {path} --claims-only"] if phase.path.suffix == ".json" else []
    if complete:
        output = shlex.quote(str(phase.folder / "certificate.json"))
        commands += [f"certvae certify {inputs} --output {output}", f"certvae verify {output} {inputs}"]
    return commands
