"""Base classes of callbacks that read the code of each validation row and check what `latents` names."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader

from certvae.monitoring.batch_reader import choose_loader
from certvae.monitoring.code_checks import CodeChecks
from certvae.monitoring.divergence import (
    OnDivergence,
    answer_divergence,
    check_on_divergence,
    find_fault,
    shared_fault,
)
from certvae.monitoring.own_rows import (
    evaluate_rows,
    number_of_batches,
    own_batches,
    runner,
    validates_now,
    warn_if_never_validated,
)
from certvae.reading.inputs import index_of
from certvae.reading.latents import Captured, LatentCapture, LatentSource
from certvae.reading.rows import Attendance, RowPositions

__all__ = ["CheckedLatents", "RowsCallback", "find_named"]

Named = TypeVar("Named", bound=Callback)


def find_named(trainer: Trainer, kind: type[Named], name: str, asking: str, add: str) -> Named:
    """The callback of a run with a given class and ``name``.

    Args:
        trainer: trainer of the run.
        kind: class of the callback; it has an attribute ``name``.
        name: name of the callback.
        asking: what needs the callback, for the error message.
        add: code that creates such a callback, for the error message.

    Raises:
        ValueError: if no callback has this name.
    """
    found: list[Any] = [item for item in trainer.callbacks if isinstance(item, kind)]  # type: ignore[attr-defined]
    for item in found:
        if item.name == name:
            return item
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    raise ValueError(
        f"{asking} needs {article} {kind.__name__} with name={name!r} in the same trainer, got "
        f"{[item.name for item in found] or 'none'}. Add {add}."
    )


class CheckedLatents(Callback):
    """Checks on the graph of the first training losses whether ``latents`` names the code."""

    def __init__(self) -> None:
        super().__init__()
        self._checks = CodeChecks(None)

    def _check(self, source: LatentSource | None) -> None:
        """Begin a run with this source."""
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
    """Base class: reads the code of every batch of one validation dataloader, except in the sanity check.

    Args:
        capture: where the code is.
        dataloader: which validation dataloader is measured, by position or name. Or a separate dataloader, on which the
            callback runs the module itself in eval mode.
        on_divergence: action if codes are not finite: ``"warn"`` or ``"raise"``.

    Attributes:
        fault: text that names a row of the latest validation with a code that is not finite; empty if all are finite.
    """

    def __init__(
        self, capture: LatentCapture, dataloader: int | str | DataLoader[Any], on_divergence: OnDivergence
    ) -> None:
        super().__init__()
        self.capture, self.dataloader = capture, dataloader
        self.own_rows = None if isinstance(dataloader, int | str) else dataloader
        self.on_divergence, self.fault = check_on_divergence(on_divergence), ""
        self._loader_position = 0
        self._positions: RowPositions | None = None
        self._attendance: Attendance | None = None

    @abstractmethod
    def _start(self) -> None:
        """Begin a measured validation."""

    @abstractmethod
    def _read(self, pl_module: LightningModule, batch: Any, outputs: Any) -> None:
        """Read a batch; :meth:`_next` gives the positions and weights of its rows."""

    def _next(self, rows: int, batch: Any = None) -> tuple[Tensor, Tensor]:
        """Positions and weights of the next rows of the data set."""
        assert self._positions is not None
        assert self._attendance is not None
        self._attendance.end(rows)
        return self._positions.next(rows, index_of(batch))

    def _faulty(self, codes: Iterable[Captured], positions: Tensor) -> bool:
        """Whether a code of these rows or of earlier rows is not finite."""
        for mean, log_variance, rate in codes:
            self.fault = self.fault or find_fault(positions, mean=mean, log_variance=log_variance, rate=rate)
        return bool(self.fault)

    def _diverged(self, trainer: Trainer, device: torch.device) -> bool:
        """Whether a code on any process is not finite; warns if so; collectives.

        Raises:
            ValueError: if a code is not finite and ``on_divergence`` is ``"raise"``.
        """
        self.fault = shared_fault(trainer, self.fault, device)
        if self.fault:
            lacking = f"{type(self).__name__} has no numbers for this epoch"
            answer_divergence(trainer, self.fault, lacking, self.on_divergence)
        return bool(self.fault)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Register the hook.

        Raises:
            ValueError: if no submodule has this name.
        """
        if stage in ("fit", "validate"):
            self.capture.attach(pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._positions = None
        if trainer.sanity_checking or not isinstance(self.dataloader, int | str):
            return
        self._loader_position, loader = choose_loader(trainer.val_dataloaders, self.dataloader)
        self._begin_rows(trainer, loader, trainer.num_val_batches[self._loader_position])

    def _begin_rows(self, trainer: Trainer, loader: Any, batches: float) -> None:
        self._positions = RowPositions(loader, trainer)
        self._attendance = Attendance(loader, batches)
        self.fault = ""
        self._start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.own_rows is not None:
            warn_if_never_validated(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run the module over the callback's own dataloader, if it has one."""
        if self.own_rows is None or not validates_now(trainer):
            return
        limit = number_of_batches(trainer, self.own_rows)
        self._begin_rows(trainer, self.own_rows, limit)
        batches = own_batches(trainer, self.own_rows, limit)
        evaluate_rows(self, pl_module, batches, runner(pl_module, self.capture.source))
        self.on_validation_epoch_end(trainer, pl_module)
        self._positions = None

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._positions is not None and dataloader_idx == self._loader_position:
            self.begin()
        else:
            self.capture.listen(False)

    def begin(self) -> None:
        """Begin a measured batch."""
        assert self._attendance is not None
        self.capture.listen()
        self._attendance.begin()

    @torch.no_grad()
    @isolate_rng()  # a function given as `latents` may draw random numbers; the run must not depend on them
    def update(self, pl_module: LightningModule, batch: Any, outputs: Any) -> None:
        """Read the batch after the module ran on it."""
        self._read(pl_module, batch, outputs)

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
            self.update(pl_module, batch, outputs)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self.capture.detach()
