"""How often a set of rows was looked at, in a file that fresh callbacks and processes of a run share."""

import hashlib
import json
from pathlib import Path

from torch import Tensor

from certvae.io.files import write_atomic
from certvae.io.untrusted import parse_json, read_limited

__all__ = ["LookLedger", "name_rows"]

LEDGER_LIMIT = 2**23  # bytes; 250,000 looks


def name_rows(count: float, average: Tensor) -> str:
    """A name for a set of rows that no order of them and no split over processes changes.

    It is made of the number of rows and of an average over them to 9 decimals. Two sets that agree in both are taken
    for one.

    Args:
        count: rows.
        average: of the teacher, or of what a model scores, shape ``(K,)``.
    """
    numbers = ",".join(f"{value:.9f}" for value in average.tolist())
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
        self._looks: dict[str, dict[str, int]] = {}

    def take(self, rows: str, at_least: int = 1, seen: str = "") -> int:
        """Record a look at rows, and return its number.

        Args:
            rows: their name, of :func:`name_rows`.
            at_least: looks at them that are known from elsewhere, such as a checkpoint, with this one.
            seen: what was seen. Who sees the same once more, as a run that was killed and goes on does, takes no new
                look. Default: something new.

        Raises:
            ValueError: if the file is no ledger.
            OSError: if it may not be read or written.
        """
        looks = self._read()
        own = looks.setdefault(rows, {})
        if seen not in own:
            number = max(max(own.values(), default=0) + 1, at_least)
            own[seen or f"look {number}"] = number
            self._looks = looks
            if self.path is not None:
                write_atomic(self.path, json.dumps(looks, indent=2) + "\n")
            return number
        return own[seen]

    def _read(self) -> dict[str, dict[str, int]]:
        if self.path is None or not self.path.exists():
            return self._looks
        looks = parse_json(read_limited(self.path, LEDGER_LIMIT, "ledger of looks"))
        named = looks.values() if isinstance(looks, dict) else [None]
        if not all(isinstance(own, dict) and all(type(n) is int and n > 0 for n in own.values()) for own in named):
            raise ValueError(f"{self.path} is no ledger of looks: it must map names of rows to looks. Delete it.")
        return looks
