"""A callback that shows the progress of a run in one line: live in a terminal, a few plain lines elsewhere."""

import math
import sys
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from certvae.callbacks.certificate import CertificateCallback
from certvae.certificate.certificate import Certificate

__all__ = ["StatusLine"]

WIDE = 110  # terminal columns that a protocol's whole line needs


class StatusLine(Callback):
    """Show epoch, margin, threshold, reading, verdict and time of a run in one line; epochs count from 0.

    In a terminal the line is live; below 110 columns the verdict comes before the margin, and the line is cut at the
    edge. Without a terminal, or with Lightning's own progress bar (which shows the margin too), about ``lines`` plain
    lines are printed per run.

    Args:
        label: name of the run in the line.
        lines: plain lines per run, at least 1.

    Example:
        >>> from certvae.callbacks import StatusLine
        >>> line = StatusLine("my VAE")
    """

    def __init__(self, label: str = "", lines: int = 5) -> None:
        super().__init__()
        if lines < 1:
            raise ValueError(f"`lines` must be at least 1, got {lines}.")
        self.label, self.lines = label, lines
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._narrow = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (trainer.is_global_zero and sys.stdout.isatty()) or _has_bar(trainer):
            return
        console = Console()
        self._narrow = console.width < WIDE
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=6 if self._narrow else 12),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        )
        self._progress = Progress(*columns, console=console, expand=True)  # a narrow terminal cuts only the text
        batches = trainer.num_training_batches
        known = math.isfinite(batches) and _epochs(trainer, pl_module)
        total, done = (known * batches, trainer.current_epoch * batches) if known else (None, 0)
        self._task = self._progress.add_task(self.label, total=total, completed=int(done), text="")
        self._progress.start()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs, epoch = _epochs(trainer, pl_module), trainer.current_epoch
        number = f"{epoch}{f'/{epochs - 1}' if epochs else ''}"
        text = f"epoch {number}{_verdicts(trainer, narrow=False)}"
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, text=number + _verdicts(trainer, True) if self._narrow else text)
        elif (epoch + 1) % max(1, epochs // self.lines) == 0 or epoch + 1 == epochs:
            pl_module.print(f"{self.label}  {text}" if self.label else text)
            sys.stdout.flush()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()


def _epochs(trainer: Trainer, pl_module: LightningModule) -> int:
    limit = trainer.max_epochs
    return limit if limit is not None and limit >= 0 else int(getattr(pl_module, "max_passes", 0))


def _has_bar(trainer: Trainer) -> bool:
    bar = trainer.progress_bar_callback
    return bar is not None and bool(bar.is_enabled)  # type: ignore[attr-defined]


def _verdicts(trainer: Trainer, narrow: bool) -> str:
    """The latest certificate of each callback."""
    watches = [item for item in trainer.callbacks if isinstance(item, CertificateCallback)]  # type: ignore[attr-defined]
    return "".join(_verdict(item.name, item.certificate, narrow) for item in watches if item.certificate is not None)


def _verdict(name: str, certificate: Certificate, narrow: bool) -> str:
    of = "" if name == "certificate" else f"{name}: "
    margin, information = certificate.margin, certificate.teacher_information
    verdict = f"{certificate.reading}, {certificate.status}"
    return (
        f" {of}{verdict} {margin:+.3f}"
        if narrow
        else f"  {of}margin {margin:+.3f} of {information:.3f} nats, {verdict}"
    )
