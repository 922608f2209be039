"""The summary of a protocol: its phases, table, claims and figure."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from certvae.certificate.certificate import Certificate
from certvae.certificate.figures import protocol_figure
from certvae.certificate.history import read_history
from certvae.commands.tables import Line, Results, terminal_table
from certvae.io.files import sha256_file, write_atomic
from certvae.teachers import load_teacher

__all__ = ["OPTIONAL_PHASES", "PHASES", "claims", "margin_figure", "summarize", "summary_table"]

PHASES = ("full", "no_align", "rescue")
OPTIONAL_PHASES = ("ablate", "guarded", "prefit")
CERTIFIED = {  # expected result of each phase
    "full": True,
    "no_align": False,
    "rescue": True,
    "ablate": False,
    "guarded": True,
    "prefit": True,
}
COLUMNS = {
    "seed": "{seed}",
    "phase": "{phase}",
    "status": "{status}",
    "reading": "{reading}",
    "margin": "{margin:.3f}",
    ">=": "{margin_lower:.3f}",
    "I_T": "{teacher_information:.3f}",
    "channel": "{channel_margin:.3f}",
    "code": "{code}",
    "rate": "{rate:.3f}",
    "I_S": "{witness_information:.3f}",
    "s/ep": "{seconds_per_epoch:.1f}",
}
NARROW = ("seed", "phase", "status", "reading", "margin", ">=", "I_T", "code")
MEANINGS = {  # of the columns whose headings need a word
    ">=": "lower bound of the margin",
    "I_T": "teacher information",
    "channel": "margin on draws of the code",
    "code": "information in a draw of the code",
    "rate": "the most it can carry",
    "I_S": "witness information",
    "s/ep": "seconds per epoch",
}
WIDE = 100  # terminal columns that the full table needs


def summarize(
    dataset: str,
    output_dir: Path,
    folders: Mapping[int, Path],
    teachers: Mapping[int, Path],
    phases: Sequence[str],
    made: str,
) -> dict[str, Any]:
    """Collect the phases' results and write ``summary.json``, ``summary.csv``, ``summary.md`` and ``margin.png``.

    Args:
        dataset: name of the data set in the table and the figure.
        output_dir: folder of the protocol.
        folders: of each seed's phases.
        teachers: path of each seed's teacher.
        phases: what each seed has run.
        made: last paragraph of the Markdown file; see :func:`certvae.commands.tables.origin`.

    Returns:
        ``{"dataset", "seeds": {seed: {"teacher": {...}, "phases": {phase: {...}}}}}``.
    """
    summary = {
        "dataset": dataset,
        "seeds": {
            str(seed): {"teacher": _teacher(teachers[seed]), "phases": _phases(folder, phases)}
            for seed, folder in folders.items()
        },
    }
    write_atomic(output_dir / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    lines = _lines(summary)
    figures = {"margin": margin_figure(dataset, folders, phases)}
    Results(lines, COLUMNS, claims(lines), figures).write(output_dir, "summary", made)
    return summary


def claims(lines: Sequence[Line]) -> dict[str, bool]:
    """Whether each phase has the expected result in every seed."""
    statuses = {name: {line["status"] for line in lines if line["phase"] == name} for name in CERTIFIED}
    return {
        f"{name} is {'' if certified else 'not '}certified in every seed": (
            statuses[name] == {"CERTIFIED" if certified else "NOT_CERTIFIED"}
        )
        for name, certified in CERTIFIED.items()
        if statuses[name]
    }


def margin_figure(dataset: str, folders: Mapping[int, Path], phases: Sequence[str]) -> Figure:
    """A figure of the margin on validation rows against the epoch.

    Args:
        dataset: name of the data set, for the title.
        folders: of each seed's phases.
        phases: what each seed has run.
    """
    histories = {
        str(seed): {phase: read_history(folder / phase / "certificates_val.jsonl") for phase in phases}
        for seed, folder in folders.items()
    }
    return protocol_figure(histories, f"{dataset}: certified, collapsed, rescued")


def summary_table(summary: dict[str, Any], width: int = WIDE) -> Table:
    """A terminal table of the certificates of every seed and phase.

    Args:
        summary: summary of the protocol.
        width: terminal columns; below 100, only the most important values are shown.
    """
    columns = COLUMNS if width >= WIDE else {name: COLUMNS[name] for name in NARROW}
    title = f"{summary['dataset']}: certificates on rows that training never saw (nats)"
    table = terminal_table(title, _lines(summary), columns)
    table.caption = "; ".join(f"{name}: {meaning}" for name, meaning in MEANINGS.items() if name in columns)
    table.caption_justify = "left"
    return table


def _teacher(path: Path) -> dict[str, Any]:
    return {**load_teacher(path).card.to_dict(), "sha256": sha256_file(path)}


def _phases(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    phases = {}
    for phase in names:
        certificate = Certificate.load(folder / phase / "certificate_test.json")
        run = json.loads((folder / phase / "run.json").read_text())
        seconds, epochs = run["seconds"], run["epochs_run"]  # since the last start, if the phase was interrupted
        timing = {"seconds": seconds, "seconds_per_epoch": round(seconds / epochs, 2) if epochs else None}
        bracket = {name: getattr(certificate, name) for name in ("information_lower", "information_upper")}
        phases[phase] = {**certificate.to_dict(), **bracket, **timing}
    return phases


def _lines(summary: dict[str, Any]) -> list[Line]:
    return [
        {"dataset": summary["dataset"], "seed": int(seed), "phase": phase, "code": _code(values), **_scalars(values)}
        for seed, parts in summary["seeds"].items()
        for phase, values in parts["phases"].items()
    ]


def _code(values: dict[str, Any]) -> str | None:
    """Information in the code, from the lower to the upper side in nats; None if unknown."""
    lower, upper = values["information_lower"], values["information_upper"]
    if lower is None:
        return None
    return f"at least {lower:.2f}" if upper is None else f"{lower:.2f} to {upper:.2f}"


def _scalars(values: dict[str, Any]) -> dict[str, Any]:
    left_out = ("schema", "components", "information", "fitted", "provenance")  # nested values
    return {key: value for key, value in values.items() if key not in left_out}
