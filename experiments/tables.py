"""Tables of studies as Markdown, and where they were made."""

import os
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

__all__ = ["Line", "commit", "markdown", "origin"]

HERE = Path(__file__).parent
Line = dict[str, Any]


def markdown(lines: Sequence[Line], columns: Mapping[str, str]) -> str:
    """A Markdown table.

    Args:
        lines: values of each row.
        columns: heading of each column and the format string of its cells, with the names of values.
    """
    rows = [[text.format(**line) for text in columns.values()] for line in lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in [columns, ["---"] * len(columns), *rows])


def origin(module: str, options: Mapping[str, Any], commits: str, seconds: float) -> str:
    """Command, commit, day, machine and time of a study, as Markdown.

    Args:
        module: that was called.
        options: what was given to it.
        commits: a phrase, such as ``"trained at commit 1234567"``.
        seconds: of all runs.
    """
    words = [word for key, value in options.items() if value for word in (f"--{key}", *_words(value))]
    command = shlex.join(["python", "-m", module, *words])
    return (
        f"Made by `{command}`, {commits}, {datetime.now(UTC).date()}, on {_machine()}; "
        f"{seconds:.0f} s for the runs in all.\n"
    )


def _words(value: Any) -> list[str]:
    if value is True:
        return []
    items = value if isinstance(value, list) else [value]
    return [f"{item:g}" if isinstance(item, float) else str(item) for item in items]


def commit() -> str:
    """The checkout's commit, with ``-dirty`` if something was changed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    found = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else "unknown (no git checkout)"


def _machine() -> str:
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"torch {torch.__version__}, Lightning {version('pytorch-lightning')}"
    return f"{os.cpu_count()} cores ({platform.machine()}, {platform.system()}){accelerator}, {versions}"
