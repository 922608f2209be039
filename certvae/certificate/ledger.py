"""How often a set of rows was looked at, in a file that fresh callbacks and processes of a run share."""

import hashlib
import json
from pathlib import Path

from torch import Tensor

from certvae.io.files import write_atomic
from certvae.io.untrusted import parse_json, read_limited

__all__ = ["LookLedger", "name_rows"]

LEDGER_LIMIT = 2**20  # bytes; 10,000 sets of rows


def name_rows(count: float, teacher_mean: Tensor) -> str:
    """A name for a set of rows that no order of them and no split over processes changes.

    It is made of the number of rows and of the average teacher to 6 decimals. Two sets that agree in both are taken for
    one, which costs looks and is safe.

    Args:
        count: rows.
        teacher_mean: shape ``(K,)``.
    """
    numbers = ",".join(f"{value:.6f}" for value in teacher_mean.tolist())
    return hashlib.sha256(f"{count:.0f}:{numbers}".encode()).hexdigest()[:16]


class LookLedger:
    """Counts looks at sets of rows.

    A bound that spends its error over looks holds for all looks that one ledger has recorded, and for no others: copies
    of a run, and callbacks that write elsewhere or nowhere, have ledgers of their own.

    Args:
        path: the file; None keeps the counts in memory, for this object alone.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._counts: dict[str, int] = {}

    def take(self, rows: str, at_least: int = 1) -> int:
        """Record a look at rows, and return its number.

        Args:
            rows: their name, of :func:`name_rows`.
            at_least: looks at them that are known from elsewhere, such as a checkpoint, with this one.

        Raises:
            ValueError: if the file is no ledger.
            OSError: if it may not be read or written.
        """
        counts = self._read()
        counts[rows] = max(counts.get(rows, 0) + 1, at_least)
        self._counts = counts
        if self.path is not None:
            write_atomic(self.path, json.dumps(counts, indent=2) + "\n")
        return counts[rows]

    def _read(self) -> dict[str, int]:
        if self.path is None or not self.path.exists():
            return self._counts
        counts = parse_json(read_limited(self.path, LEDGER_LIMIT, "ledger of looks"))
        if not isinstance(counts, dict) or not all(type(count) is int and count > 0 for count in counts.values()):
            raise ValueError(f"{self.path} is no ledger of looks: it must map names of rows to counts. Delete it.")
        return counts
