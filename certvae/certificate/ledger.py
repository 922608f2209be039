"""A file that counts the looks at each set of rows, shared by the callbacks and processes of a run."""

import hashlib
import json
from pathlib import Path

from torch import Tensor

from certvae.io.files import write_atomic
from certvae.io.untrusted import parse_json, read_limited

__all__ = ["LookLedger", "name_rows"]

LEDGER_LIMIT = 2**23  # bytes; 250,000 looks


def name_rows(count: float, average: Tensor) -> str:
    """A name for a set of rows that does not depend on their order or on the number of processes.

    It is a hash of the number of rows and of an average over them to 9 decimals. Two sets that agree in both get the
    same name.

    Args:
        count: number of rows.
        average: mean of the teacher, or of what a model scores, shape ``(K,)``.
    """
    numbers = ",".join(f"{value:.9f}" for value in average.tolist())
    return hashlib.sha256(f"{count:.0f}:{numbers}".encode()).hexdigest()[:16]


class LookLedger:
    """Counts looks at sets of rows.

    A bound with spending holds only for the looks in one ledger. Copies of a run, and callbacks that write to another
    folder or to none, have separate ledgers.

    Args:
        path: the file; None keeps the counts in memory, for this object only.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._looks: dict[str, dict[str, int]] = {}

    def take(self, rows: str, at_least: int = 1, seen: str = "") -> int:
        """Record a look at a set of rows; returns its number.

        Args:
            rows: name of the set, from :func:`name_rows`.
            at_least: smallest number to return, such as the count from a checkpoint plus this look.
            seen: identifies what was seen. Seeing the same again, as a resumed run does, is not a new look. Default: a
                new look.

        Raises:
            ValueError: if the file is not a ledger.
            OSError: if it cannot be read or written.
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
            raise ValueError(f"{self.path} is not a ledger of looks: it must map names of rows to looks. Delete it.")
        return looks
