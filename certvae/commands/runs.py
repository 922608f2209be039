"""Executes a series of runs that can be stopped and resumed, for ``certvae protocol`` and the studies.

Each run has a folder. It contains ``run.yaml``, with which ``certvae fit --config`` repeats the run; checkpoints, from
which an interrupted run resumes; and ``run.json`` once the run is done.
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning.cli import LightningCLI

from certvae.certificate.certificate import Certificate
from certvae.commands.lightning import run_lightning
from certvae.commands.mistakes import shortened
from certvae.commands.tables import commit
from certvae.io.files import sha256_file, write_atomic
from certvae.monitoring.loggers import end_runs
from certvae.monitoring.run_facts import flat

__all__ = ["Run", "RunError", "certify_held_out_rows", "execute", "interruptible"]

LONGEST = 40  # characters of a setting in a message


class RunError(RuntimeError):
    """A series of runs cannot continue: it was interrupted, or a folder holds a run with other settings."""


@dataclass(frozen=True)
class Run:
    """One fit in its own folder.

    Attributes:
        folder: folder of all files of the run.
        values: the complete configuration.
        label: name of the run in the terminal.
        teacher: path of the run's teacher. Its digest is part of the settings; None for a teacher search.
        product: a file that the run writes. The run counts as done only if this file exists.
    """

    folder: Path
    values: dict[str, Any]
    label: str
    teacher: Path | None = None
    product: Path | None = None

    @property
    def config(self) -> Path:
        """The path of the run's YAML."""
        return self.folder / "run.yaml"

    @property
    def checkpoint(self) -> Path:
        """The path of the last checkpoint."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def is_done(self) -> bool:
        """Whether an earlier call has finished the run."""
        return (self.folder / "run.json").is_file() and (self.product is None or self.product.is_file())

    @property
    def record(self) -> dict[str, Any]:
        """The record of a finished run; see :func:`execute`."""
        return dict(json.loads((self.folder / "run.json").read_text()))

    def write_config(self) -> None:
        """Write ``run.yaml``.

        Raises:
            RunError: if the folder holds a run with other settings.
        """
        head = "" if self.teacher is None else f"# teacher: SHA-256 {sha256_file(self.teacher)}\n"
        content = head + yaml.safe_dump(self.values, sort_keys=False)
        there = self.config.read_text() if self.config.is_file() else None
        if there == content:
            return
        if there is not None and any(item != self.config for item in self.folder.iterdir()):
            raise RunError(
                f"{self.folder} holds a run with other settings than requested (compare {self.config})"
                f"{_changes(there, self.values)}. Give another `--output_dir`, or delete that folder to run it again."
            )
        write_atomic(self.config, content)


def _changes(there: str, values: dict[str, Any]) -> str:
    """``": trainer.max_epochs is 40 there, not 2"``, for the first three; empty if no setting differs."""
    try:
        before, now = flat({"": yaml.safe_load(there)}), flat({"": values})
    except yaml.YAMLError:
        return ""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    told = [
        f"{name.strip('/').replace('/', '.')} is {shortened(before.get(name), LONGEST)} there, "
        f"not {shortened(now.get(name), LONGEST)}"
        for name in names[:3]
    ]
    return f": {'; '.join(told)}{' ...' if len(names) > len(told) else ''}" if told else ""


def execute(run: Run, finish: Callable[[LightningCLI], dict[str, Any]] | None = None) -> dict[str, Any]:
    """Fit a run unless it is done, resuming from its last checkpoint if there is one.

    Args:
        run: the run.
        finish: function of the fitted command line (model, trainer and data) that returns values for the record.

    Returns:
        The run's record: ``seconds`` and ``epochs_run`` of its last start, ``commit`` of the code, and the values of
        ``finish``.

    Raises:
        RunError: if the folder holds a run with other settings.
    """
    run.write_config()
    if run.is_done:
        print(f"{run.label.rstrip()}: done before, kept.")
        return run.record
    started = time.perf_counter()
    resume = ["--ckpt_path", "last"] if any(run.checkpoint.parent.glob("*.ckpt")) else []
    cli = run_lightning(["fit", "--config", str(run.config), *resume])
    epochs = cli.trainer.current_epoch - getattr(cli.trainer.checkpoint_callback, "resumed_at", 0)
    found = {} if finish is None else finish(cli)
    end_runs(cli.trainer)
    seconds = round(time.perf_counter() - started, 2)
    record = {"seconds": seconds, "epochs_run": epochs, "commit": commit(), **found}
    write_atomic(run.folder / "run.json", json.dumps(record, indent=2) + "\n")
    return record


def certify_held_out_rows(cli: LightningCLI, folder: Path) -> dict[str, Any]:
    """Certify on the test rows with the run's ``CertificateCallback``; for :func:`execute`.

    Args:
        cli: the fitted run.
        folder: ``save_dir`` of the callback.

    Returns:
        No values for the record: the certificate is in ``certificate_test.json``.

    Raises:
        FileNotFoundError: if the callback wrote no certificate.
    """
    cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    Certificate.load(folder / "certificate_test.json")
    return {}


class _Terminated(KeyboardInterrupt):
    """SIGTERM: an interrupt for Lightning, but with another exit status than Ctrl-C."""


def _terminate(*_: Any) -> None:
    raise _Terminated


@contextmanager
def interruptible(folder: Path) -> Iterator[None]:
    """Convert Ctrl-C and SIGTERM into a :class:`RunError` that tells how to resume.

    Args:
        folder: folder of the series, for the message.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if in_main_thread else None
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning turns Ctrl-C into `sys.exit(1)`; other exits are the parser's.
        if isinstance(stop, SystemExit) and stop.code != 1:
            raise
        raise RunError(f"{folder} was interrupted; run the same command again to resume.") from None
    finally:
        if in_main_thread:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
