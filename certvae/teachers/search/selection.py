"""The table of all candidate teachers, the choice among them, and their display."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from rich.table import Table

from certvae.io.files import csv_text, write_atomic

__all__ = ["CandidateRow", "SelectionCriteria", "choose", "rich_table", "write_table"]


@dataclass(frozen=True)
class SelectionCriteria:
    """Conditions that a teacher must meet to be chosen.

    Args:
        max_energy: largest energy of the inverse code at the search's witness scale, nats.
        min_use: smallest average probability of a component on training rows, as a share of ``1 / K``.
        max_use: largest average probability of a component on training rows.
        max_drift: largest ``KL(held-out average || training average)``, nats.

    Raises:
        ValueError: if an energy or a drift is not positive, or a use is not in [0, 1].
    """

    max_energy: float = 10.0
    min_use: float = 0.1
    max_use: float = 0.5
    max_drift: float = 0.05

    def __post_init__(self) -> None:
        if not (self.max_energy > 0 and self.max_drift > 0):
            raise ValueError(f"`max_energy` and `max_drift` must be positive, got {self.max_energy}, {self.max_drift}.")
        if not (0 <= self.min_use <= 1 and 0 < self.max_use <= 1):
            raise ValueError(f"`min_use` and `max_use` must lie in [0, 1], got {self.min_use} and {self.max_use}.")


@dataclass(frozen=True)
class CandidateRow:
    """One candidate teacher with its settings, measurements and result. Values are in nats, except the uses."""

    components: int
    covariance: str
    initialization: int
    temperature: float
    log_likelihood: float
    information_train: float
    information_held_out: float
    energy: float
    smallest_use: float
    largest_use: float
    drift: float
    within_bounds: bool = False
    on_front: bool = False
    chosen: bool = False

    def meets(self, criteria: SelectionCriteria) -> bool:
        """Whether every criterion is met."""
        return (
            self.energy <= criteria.max_energy
            and self.smallest_use >= criteria.min_use / self.components
            and self.largest_use <= criteria.max_use
            and self.drift <= criteria.max_drift
        )


def choose(rows: Sequence[CandidateRow], criteria: SelectionCriteria) -> tuple[list[CandidateRow], int | None]:
    """Choose the candidate that meets the criteria and has the most held-out information; mark it and the front.

    Args:
        rows: the candidates.
        criteria: the conditions.

    Returns:
        The marked rows and the position of the chosen one; None if no candidate meets the criteria.
    """
    marked = [replace(row, within_bounds=row.meets(criteria), on_front=_on_front(row, rows)) for row in rows]
    eligible = [i for i, row in enumerate(marked) if row.within_bounds and math.isfinite(row.information_held_out)]
    if not eligible:
        return marked, None
    best = max(eligible, key=lambda i: marked[i].information_held_out)
    marked[best] = replace(marked[best], chosen=True)
    return marked, best


def _on_front(row: CandidateRow, rows: Sequence[CandidateRow]) -> bool:
    """Whether no other candidate has more held-out information for at most the energy."""
    return not any(
        other.information_held_out > row.information_held_out and other.energy <= row.energy for other in rows
    )


def explain(row: CandidateRow, rows: Sequence[CandidateRow], criteria: SelectionCriteria, scale: float) -> str:
    """One sentence on why this candidate was chosen; ``scale`` is the witness scale at which energies are given."""
    eligible = sum(other.within_bounds for other in rows)
    return (
        f"Chosen: {row.components} {row.covariance} components at temperature {row.temperature:g}, with the most "
        f"held-out information ({row.information_held_out:.3f} nats) of the {eligible} of {len(rows)} candidates that "
        f"keep energy <= {criteria.max_energy:g} nats at witness scale {scale:g}, smallest use >= "
        f"{criteria.min_use:g}/K, largest use <= {criteria.max_use:g} and drift <= {criteria.max_drift:g}."
    )


def write_table(rows: Sequence[CandidateRow], path: Path) -> Path:
    """Write all candidates as CSV, atomically."""
    return write_atomic(path, csv_text((item.name for item in fields(CandidateRow)), map(asdict, rows)))


def rich_table(rows: Sequence[CandidateRow], most: int = 12) -> Table:
    """The candidates with the most held-out information, including the chosen one, as a rich table."""
    table = Table(
        title=f"Candidate teachers ({len(rows)} tried; nats)", box=None, padding=(0, 1, 0, 0), title_justify="left"
    )
    for name in ("K", "cov", "start", "temp", "I held-out", "I train", "energy", "use", "drift", ""):
        table.add_column(name, justify="left" if name in ("cov", "") else "right", no_wrap=True)
    ordered = sorted(rows, key=lambda row: (not row.chosen, not row.within_bounds, -row.information_held_out))
    for row in ordered[:most]:
        mark = "chosen" if row.chosen else ("" if row.within_bounds else "out")
        table.add_row(*_cells(row), mark, style="bold" if row.chosen else None)
    return table


def _cells(row: CandidateRow) -> list[str]:
    return [
        str(row.components),
        row.covariance[:4],
        str(row.initialization),
        f"{row.temperature:g}",
        f"{row.information_held_out:.3f}",
        f"{row.information_train:.3f}",
        f"{row.energy:.2f}",
        f"{row.smallest_use:.2f}-{row.largest_use:.2f}",
        f"{row.drift:.3f}",
    ]
