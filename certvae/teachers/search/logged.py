"""Logs a search in Weights & Biases, or in another logger with tables."""

from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from certvae.io.files import sha256_file
from certvae.teachers.search.selection import CandidateRow

__all__ = ["log_candidates", "log_teacher"]


def log_candidates(loggers: Iterable[Any], rows: Sequence[CandidateRow]) -> None:
    """Log all candidates as the table ``search/candidates``, in loggers that support tables."""
    columns = [item.name for item in fields(CandidateRow)]
    for logger in loggers:
        if hasattr(logger, "log_table"):
            logger.log_table("search/candidates", columns, [list(astuple(row)) for row in rows])


def log_teacher(loggers: Iterable[Any], path: Path) -> None:
    """Log the teacher's file as an artifact of Weights & Biases, under the name under which fits use it."""
    for logger in loggers:
        if hasattr(logger, "log_table"):
            logger.experiment.log_artifact(str(path), f"teacher-{sha256_file(path)[:12]}", "teacher")
