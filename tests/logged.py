"""A small run that is certified at once, for any logger, and the loss of its certificate."""

from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from certvae.callbacks import CertificateCallback, ReconstructionImages
from certvae.datamodules import DigitsDataModule
from tests.runs import digits_teacher, small_vae, trainer


class Collapse(Callback):
    """Makes every code zero from an epoch on."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    @torch.no_grad()
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch >= self.epoch:
            for value in cast(Any, pl_module).encoder.head.parameters():
                value.zero_()


def run(folder: Path, logger: Any, callbacks: list[Callback] | None = None, epochs: int = 2, **options: Any) -> Trainer:
    """Fit a small VAE that is certified in its first epoch, and show pictures of it."""
    callbacks = [CertificateCallback(save_dir=folder)] if callbacks is None else callbacks
    callbacks = [*callbacks, ReconstructionImages()]
    resume = options.pop("ckpt_path", None)
    runner = trainer(folder, max_epochs=epochs, logger=logger, callbacks=callbacks, **options)
    model = small_vae(digits_teacher(), alignment_weight=200.0, learning_rate=1e-2)
    runner.fit(model, datamodule=data(), ckpt_path=resume)
    return runner


def data() -> DigitsDataModule:
    return DigitsDataModule(batch_size=64, subset=320)
