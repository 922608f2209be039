"""Forked processes in which faults strike: they share the imports of this one, and nothing else."""

import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Ended:
    """How a process ended: its status, or minus the signal that killed it; what it printed; and how long it took."""

    status: int
    output: str
    seconds: float

    @property
    def end(self) -> str:
        """The status or the signal's name."""
        return signal.Signals(-self.status).name if self.status < 0 else f"status {self.status}"

    def has(self, pattern: str) -> bool:
        """Whether a line of the output matches."""
        return re.search(pattern, self.output) is not None

    @property
    def last_line(self) -> str:
        """The last line that was printed."""
        return self.output.strip().splitlines()[-1] if self.output.strip() else ""


def in_child(folder: Path, action: Callable[..., Any], *args: Any, limit: float = 120, **options: Any) -> Ended:
    """Run ``action`` in a forked process whose current folder is ``folder``; killed after ``limit`` seconds."""
    begun, log = time.monotonic(), folder / "output.log"
    status = _wait(_fork(folder, log, lambda: action(*args, **options)), begun + limit)
    return Ended(status, log.read_text(errors="replace"), time.monotonic() - begun)


def start_child(folder: Path, action: Callable[..., Any], *args: Any, **options: Any) -> int:
    """The id of a process that runs beside this one, with an output of its own."""
    number = len(list(folder.glob("beside_*.log")))
    return _fork(folder, folder / f"beside_{number}.log", lambda: action(*args, **options))


def result_of(child: int, limit: float) -> int:
    """How such a process ended; it is killed after ``limit`` seconds."""
    return _wait(child, time.monotonic() + limit)


def _fork(folder: Path, log: Path, action: Callable[[], Any]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    log.touch()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os._exit(_run(folder, log.resolve(), action))
    with suppress(ProcessLookupError, PermissionError):  # it may have done so itself, or have ended
        os.setpgid(child, child)  # its own children are killed with it
    return child


def _run(folder: Path, log: Path, action: Callable[[], Any]) -> int:
    status, sys.argv = 1, ["certvae"]
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        status = int(action() or 0)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return status


def _wait(child: int, deadline: float) -> int:
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.02)
