"""The summary of a protocol: a JSON file, a CSV file, a figure and a table for the terminal."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from certvae.certificate.certificate import Certificate
from certvae.certificate.figures import protocol_figure, save_figure
from certvae.certificate.history import read_history
from certvae.io.files import csv_text, sha256_file, write_atomic
from certvae.teachers import load_teacher

__all__ = ["OPTIONAL_PHASES", "PHASES", "margin_figure", "summarize", "summary_table"]

PHASES = ("full", "no_align", "rescue")
OPTIONAL_PHASES = ("ablate",)


def summarize(
    dataset: str,
    output_dir: Path,
    seeds: Sequence[int],
    teacher_path: Callable[[int], Path],
    phases: Sequence[str] = PHASES,
) -> dict[str, Any]:
    """Collect what the phases left, and write ``summary.json``, ``summary.csv`` and ``margin.png``.

    Args:
        dataset: name for the table and the figure.
        output_dir: folder of the protocol.
        seeds: seeds that are complete.
        teacher_path: teacher file of a seed.
        phases: what each seed has run.

    Returns:
        ``{"dataset", "seeds": {seed: {"teacher": {...}, "phases": {phase: {...}}}}}``.
    """
    folders = {str(seed): output_dir / f"seed{seed}" for seed in seeds}
    summary = {
        "dataset": dataset,
        "seeds": {
            str(seed): {"teacher": _teacher(teacher_path(seed)), "phases": _phases(folders[str(seed)], phases)}
            for seed in seeds
        },
    }
    write_atomic(output_dir / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    write_atomic(output_dir / "summary.csv", _csv(summary))
    save_figure(margin_figure(dataset, folders, phases), output_dir / "margin.png")
    return summary


def margin_figure(dataset: str, folders: Mapping[str, Path], phases: Sequence[str]) -> Figure:
    """Margin against epoch of the rows that are watched.

    Args:
        dataset: name for the title.
        folders: of each seed's phases.
        phases: what each seed has run.
    """
    histories = {
        seed: {phase: read_history(folder / phase / "certificates_val.jsonl") for phase in phases}
        for seed, folder in folders.items()
    }
    return protocol_figure(histories, f"{dataset}: certified, collapsed, rescued")


def _teacher(path: Path) -> dict[str, Any]:
    return {**asdict(load_teacher(path).card), "sha256": sha256_file(path)}


def _phases(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    phases = {}
    for phase in names:
        certificate = Certificate.load(folder / phase / "certificate_test.json").to_dict()
        run = json.loads((folder / phase / "phase.json").read_text())
        seconds, epochs = run["seconds"], run["epochs_run"]  # of the last start, if the phase was interrupted
        timing = {"seconds": seconds, "seconds_per_epoch": round(seconds / epochs, 2) if epochs else None}
        phases[phase] = {**certificate, **timing}
    return phases


def _csv(summary: dict[str, Any]) -> str:
    rows = [
        {"dataset": summary["dataset"], "seed": seed, "phase": phase, **_scalars(values)}
        for seed, parts in summary["seeds"].items()
        for phase, values in parts["phases"].items()
    ]
    return csv_text(rows[0], rows)


def _scalars(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not isinstance(value, dict) and key != "schema"}


def summary_table(summary: dict[str, Any]) -> Table:
    """The certificates of every seed and phase as a rich table."""
    title = f"{summary['dataset']}: certificates on rows that training never saw (nats)"
    table = Table(title=title, box=None, padding=(0, 1, 0, 0), title_justify="left")
    for name in ("seed", "phase", "status", "margin", ">=", "I_T", "channel", "rate", "I_S", "s/ep"):
        table.add_column(name, justify="left" if name in ("phase", "status") else "right", no_wrap=True)
    colors = {"CERTIFIED": "green", "NOT_CERTIFIED": "red"}
    for seed, parts in summary["seeds"].items():
        for phase, values in parts["phases"].items():
            status = values["status"]
            numbers = (
                "margin",
                "margin_lower",
                "teacher_information",
                "channel_margin",
                "rate",
                "witness_information",
            )
            cells = [_number(values[name]) for name in numbers]
            colored = f"[{colors.get(status, 'yellow')}]{status}[/]"
            table.add_row(seed, phase, colored, *cells, _number(values["seconds_per_epoch"], digits=1))
    return table


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
