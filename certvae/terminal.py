"""Terminal output: one line for an error that the user can fix, and no hints that do not apply."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

INTERRUPTED = 130  # 128 + SIGINT, as in shells

__all__ = ["INTERRUPTED", "Outcome", "chain", "is_interrupt", "quiet", "user_errors"]


@dataclass
class Outcome:
    """Exit status of a command."""

    status: int = 0


@contextmanager
def user_errors() -> Iterator[Outcome]:
    """Print an error of this package in one line and set status 1, or 130 after Ctrl-C; re-raise other errors.

    An error counts if code of this package raised it. If a parser wrapped it in its own error, the inner one is
    printed.
    """
    outcome = Outcome()
    try:
        yield outcome
    except (KeyboardInterrupt, SystemExit) as stop:
        if not is_interrupt(stop):
            raise
        print("certvae: interrupted.", file=sys.stderr)
        outcome.status = INTERRUPTED
    except Exception as error:
        ours = next((link for link in chain(error) if _is_ours(link)), None)
        if os.environ.get("CERTVAE_TRACEBACK") or ours is None:
            raise
        interrupted = is_interrupt(error)
        name = "" if interrupted else f"{type(ours).__name__}: "
        print(f"certvae: {name}{ours}", file=sys.stderr)
        outcome.status = INTERRUPTED if interrupted else 1


def is_interrupt(error: BaseException) -> bool:
    """Whether Ctrl-C caused the error: Lightning turns it into an exit with status 1."""
    return any(type(link) is KeyboardInterrupt for link in chain(error))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, outermost first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_ours(error: BaseException) -> bool:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = "" if traceback is None else traceback.tb_frame.f_globals.get("__name__", "")
    return module.split(".")[0] == "certvae"


def quiet() -> None:
    """Silence Lightning's hints, which do not apply to the runs of these commands."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in _HINTS:
        warnings.filterwarnings("ignore", f"(?s).*{text}.*")


_HINTS = (
    "does not have many workers",
    "smaller than the logging interval",
    "LeafSpec",
    "exists and is not empty",
    "LightningCLI's args parameter",
    "tensorboardX",
    "deprecated in v4",
)
