"""What reaches the terminal: errors that a user can mend in one line, and no hints that do not apply."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

INTERRUPTED = 130  # 128 + SIGINT, as shells say it

__all__ = ["INTERRUPTED", "Outcome", "chain", "is_interrupt", "quiet", "user_errors"]


@dataclass
class Outcome:
    """Exit status of a command."""

    status: int = 0


@contextmanager
def user_errors() -> Iterator[Outcome]:
    """Print an error of ours in one line and set status 1, or 130 after Ctrl-C; everything else passes through.

    An error is ours if code of this package raised it. Where a parser wrapped ours in its own, ours is printed.
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
    """Whether Ctrl-C is behind it: Lightning turns that into an exit with status 1."""
    return any(type(link) is KeyboardInterrupt for link in chain(error))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from, outermost first."""
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
    """Leave the terminal to our own lines: Lightning's hints do not apply to the runs that these commands make."""
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
