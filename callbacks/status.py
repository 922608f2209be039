"""One line of progress for a run: a live bar in a terminal, a few plain lines elsewhere."""

import sys
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["StatusLine"]


class StatusLine(Callback):
    """Show epoch, margin, threshold and time of a run in one line.

    Use it with ``enable_progress_bar: false``. Without a terminal it prints about ``lines`` plain lines a run.

    Args:
        label: what is running.
        lines: plain lines a run, at least 1.
    """

    def __init__(self, label: str = "", lines: int = 5) -> None:
        super().__init__()
        if lines < 1:
            raise ValueError(f"`lines` must be at least 1, got {lines}.")
        self.label, self.lines = label, lines
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if not (trainer.is_global_zero and sys.stdout.isatty()):
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
        )
        self._progress = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console())
        total = _epochs(trainer, pl_module) * trainer.num_training_batches
        done = trainer.current_epoch * trainer.num_training_batches
        self._task = self._progress.add_task(self.label, total=total, completed=int(done), text="")
        self._progress.start()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: D102
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        epochs, epoch = _epochs(trainer, pl_module), trainer.current_epoch + 1
        text = f"epoch {epoch}/{epochs}{_numbers(trainer)}"
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, text=text)
        elif trainer.is_global_zero and (epoch % max(1, epochs // self.lines) == 0 or epoch == epochs):
            print(f"{self.label}  {text}", flush=True)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: D102
        self._stop()


def _epochs(trainer: Trainer, pl_module: LightningModule) -> int:
    limit = trainer.max_epochs
    return limit if limit is not None and limit >= 0 else int(getattr(pl_module, "max_passes", 0))


def _numbers(trainer: Trainer) -> str:
    metrics = trainer.callback_metrics
    if "certificate/margin" not in metrics:
        return ""
    margin, information = metrics["certificate/margin"], metrics["certificate/teacher_information"]
    return f"  margin {float(margin):+.3f} of {float(information):.3f} nats"
