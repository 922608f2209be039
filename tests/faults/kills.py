"""What strikes a run at a chosen point: signals, torn files, failing loggers, losses that are not finite."""

import io
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from certvae import VAE


def once(name: str) -> bool:
    """Whether nothing of this name has struck yet in the current folder; from now on it has."""
    marker = Path(f"struck-{name}")
    if marker.exists():
        return False
    marker.touch()
    return True


def strike(name: str, kind: str) -> None:
    """Send a signal to this process, once."""
    if once(name):
        print(f"strike: {name} with {kind}", flush=True)
        os.kill(os.getpid(), signal.Signals[kind])


class Kill(Callback):
    """Send a signal to this process, once, at the second batch of an epoch or of its validation.

    Args:
        point: ``"batch"`` or ``"validation"``.
        epoch: the epoch.
        name: of the strike, for its marker in the current folder.
        kind: name of the signal.
        rank: the process that is struck.
    """

    def __init__(self, point: str, epoch: int, name: str = "run", kind: str = "SIGKILL", rank: int = 0) -> None:
        self.point, self.epoch, self.name, self.kind, self.rank = point, epoch, name, kind, rank

    @property
    def state_key(self) -> str:
        return f"Kill({self.name})"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._reached("batch", trainer, batch_idx)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._reached("validation", trainer, batch_idx)

    def _reached(self, point: str, trainer: Trainer, batch_idx: int) -> None:
        here = (point, trainer.current_epoch, trainer.global_rank) == (self.point, self.epoch, self.rank)
        if here and batch_idx == (1 if point == "batch" else 0):  # a validation may have one batch only
            strike(self.name, self.kind)


class TornWrite(TorchCheckpointIO):
    """Write half of a checkpoint's bytes to where it belongs, then die, once.

    Args:
        epoch: the epoch whose checkpoint is torn.
        name: of the strike.
    """

    def __init__(self, epoch: int, name: str = "run") -> None:
        super().__init__()
        self.epoch, self.name = epoch, name

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        if checkpoint["epoch"] == self.epoch and not Path(f"struck-{self.name}").exists():
            buffer = io.BytesIO()
            torch.save(checkpoint, buffer)
            with open(path, "wb") as file:
                file.write(buffer.getvalue()[: len(buffer.getvalue()) // 2])
                file.flush()
                strike(self.name, "SIGKILL")
        super().save_checkpoint(checkpoint, path, storage_options)


def die_between_renames(number: int) -> None:
    """Let this process die before its ``number``-th rename of a checkpoint, once."""
    real, seen = os.replace, [0]

    def replace(source: Any, target: Any) -> None:
        seen[0] += str(target).endswith(".ckpt")
        if seen[0] == number:
            strike("run", "SIGKILL")
        real(source, target)

    os.replace = replace  # type: ignore[assignment]


class FailingLogger(DummyLogger):
    """A logger whose service goes away in an epoch."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if metrics.get("epoch") == self.epoch and once("run"):
            raise ConnectionError("the logging service is gone")


class NoisyVAE(VAE):
    """A VAE whose loss draws from every random stream, and is NaN in the epoch ``nan_epoch``."""

    nan_epoch: int | None = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = super().training_step(batch, batch_idx)
        outputs["loss"] = outputs["loss"] * (1 + 0.1 * random.random() + 0.1 * np.random.random())  # noqa: NPY002
        return outputs

    def distortion(self, images: Tensor, decoded: Tensor) -> Tensor:
        broken = self.training and self.current_epoch == self.nan_epoch and once("run")
        return super().distortion(images, decoded) * (float("nan") if broken else 1.0)
