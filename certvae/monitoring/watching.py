"""What callbacks share that read the code of each validation row, and check what `latents` names."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor

from certvae.monitoring.batch_reader import choose_loader
from certvae.monitoring.code_checks import CodeChecks
from certvae.reading.latents import LatentCapture, LatentSource
from certvae.reading.rows import Attendance, RowPositions

__all__ = ["CheckedLatents", "RowsCallback"]


class CheckedLatents(Callback):
    """Reads from the graph of the first training losses whether ``latents`` names the code."""

    def __init__(self) -> None:
        super().__init__()
        self._checks = CodeChecks(None)

    def _check(self, source: LatentSource | None) -> None:
        """A run begins with this source."""
        self._checks = CodeChecks(source)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._checks.begin(pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._checks.before_backward(loss)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._checks.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._checks.stop()


class RowsCallback(Callback, ABC):
    """Reads the code of every batch of one validation dataloader, outside the sanity check.

    Args:
        capture: where the code is.
        dataloader: which of several validation dataloaders is measured: its position or its name.
    """

    def __init__(self, capture: LatentCapture, dataloader: int | str) -> None:
        super().__init__()
        self.capture, self.dataloader = capture, dataloader
        self._loader_position = 0
        self._positions: RowPositions | None = None
        self._attendance: Attendance | None = None

    @abstractmethod
    def _start(self) -> None:
        """A validation begins that is measured."""

    @abstractmethod
    def _read(self, pl_module: LightningModule, batch: Any, outputs: Any) -> None:
        """A batch was seen; :meth:`_next` gives the places and weights of its rows."""

    def _next(self, rows: int) -> tuple[Tensor, Tensor]:
        """Places and weights of the next rows of the set."""
        assert self._positions is not None
        assert self._attendance is not None
        self._attendance.end(rows)
        return self._positions.next(rows)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put the hook in place.

        Raises:
            ValueError: if there is no submodule of this name.
        """
        if stage in ("fit", "validate"):
            self.capture.attach(pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._positions = None
        if trainer.sanity_checking:
            return
        self._loader_position, loader = choose_loader(trainer.val_dataloaders, self.dataloader)
        self._positions = RowPositions(loader, trainer)
        self._attendance = Attendance(loader, trainer.num_val_batches[self._loader_position])
        self._start()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        measured = self._positions is not None and dataloader_idx == self._loader_position
        self.capture.listen(measured)
        if measured and self._attendance is not None:
            self._attendance.begin()

    @torch.no_grad()
    @isolate_rng()  # a function given as `latents` may draw numbers: the run must not depend on it
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._positions is not None and dataloader_idx == self._loader_position:
            self._read(pl_module, batch, outputs)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self.capture.detach()
