"""Tests whether an error rate exceeds its promised value by more than simulation error."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from populations import ALPHA
from scipy.stats import binom

__all__ = ["excess", "summarize"]

LEVEL = 0.05  # of each family of tests, shared by its cells (Bonferroni)


def excess(errors: int, trials: int, cells: int = 1, rate: float = ALPHA) -> bool:
    """Whether ``errors`` of ``trials`` are too many for ``rate``: one-sided binomial test at ``LEVEL / cells``."""
    return bool(binom.sf(errors - 1, trials, rate) < LEVEL / cells)


def summarize(
    question: str, method: str, rows: Sequence[Mapping[str, Any]], errors: str, trials: str
) -> dict[str, Any]:
    """One line on a family of cells: the largest error rate, its cell, and how many cells exceed the promised rate.

    Args:
        question: what is counted as an error.
        method: the method under test.
        rows: results of the cells.
        errors: the key of the number of errors.
        trials: the key of the number of trials.
    """
    worst = max(rows, key=lambda row: row[errors] / row[trials])
    exceeding = [row for row in rows if excess(row[errors], row[trials], len(rows))]
    return {
        "question": question,
        "method": method,
        "cells": len(rows),
        "trials_per_cell": worst[trials],
        "largest_error": round(worst[errors] / worst[trials], 5),
        "where": place(worst) if worst[errors] else "everywhere 0",
        "cells_exceeding": len(exceeding),
        "exceeding": " | ".join(_rated(row, errors, trials) for row in exceeding),
    }


def place(row: Mapping[str, Any]) -> str:
    """The cell in words."""
    return " ".join(f"{key}={row[key]}" for key in _present(row))


def _present(row: Mapping[str, Any]) -> Iterable[str]:
    return (key for key in ("n", "K", "teacher", "witness", "rows", "schedule") if key in row)


def _rated(row: Mapping[str, Any], errors: str, trials: str) -> str:
    return f"{place(row)}: {row[errors] / row[trials]:.4f}"
