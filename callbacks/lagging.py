"""Lagging inference: train the encoder ahead of the decoder while this raises the mutual information."""

import math
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from certvae.callbacks.diagnostics import CollapseDiagnostics
from certvae.theory.arguments import float64_device

__all__ = ["LaggingInference"]


class LaggingInference(Callback):
    """Train the encoder for many steps before each decoder step, until the mutual information stops rising.

    The optimizer steps update only the encoder until the loss stops falling between two windows of ``check_every``
    steps, or until ``inner_steps``. Then one step updates only the other parameters. This repeats. Gradients of the
    resting part are set to None, so its optimizer moments do not change, as with a separate optimizer. After the
    monitored value has been below its best in ``patience`` validations, all parameters are trained together.

    Source: He et al., 2019, https://arxiv.org/abs/1901.05534, algorithm 1, with the constants of the authors' image.py.
    In the paper an epoch counts only decoder steps; here it counts all steps, so runs of equal length cost the same.

    It works with automatic optimization, gradient accumulation, clipping and several processes, and it can be resumed.

    Logs ``lagging/encoder_steps`` and ``lagging/decoder_steps`` at each epoch: numbers of steps of the encoder alone
    and of the rest alone. Both are 0 once all parameters are trained together.

    Args:
        inner_steps: largest number of encoder steps per decoder step, at least 1.
        check_every: encoder steps between checks of the loss, at least 1.
        patience: validations below the best value until all parameters are trained together, at least 1.
        monitor: logged value that should rise; default: the mutual information of
            :class:`certvae.callbacks.CollapseDiagnostics`.
        encoder: dotted path of the encoder in the module.

    Attributes:
        aggressive: whether the encoder still runs ahead.

    Raises:
        ValueError: if a number is below 1, the module uses manual optimization, or ``monitor`` is not logged.

    Example:
        >>> from certvae.callbacks import CollapseDiagnostics, LaggingInference
        >>> callbacks = [CollapseDiagnostics("encoder:chunk"), LaggingInference(encoder="encoder")]
    """

    def __init__(
        self,
        inner_steps: int = 100,
        check_every: int = 10,
        patience: int = 5,
        monitor: str = "diagnostics/mutual_information",
        encoder: str = "encoder",
    ) -> None:
        super().__init__()
        for name, value in (("inner_steps", inner_steps), ("check_every", check_every), ("patience", patience)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        self.inner_steps, self.check_every, self.patience = inner_steps, check_every, patience
        self.monitor, self.encoder = monitor, encoder
        self.aggressive = True
        self._best, self._below = -math.inf, 0
        self._taken, self._window, self._loss_before = 0, 0, math.inf
        self._loss: float | Tensor = 0.0  # a sum, kept on the device until it is compared
        self._decoder_next = self._stepped = False
        self._counts = [0, 0]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not pl_module.automatic_optimization:
            raise ValueError(
                f"{type(pl_module).__name__} sets `automatic_optimization = False`; LaggingInference decides which "
                "part the trainer's own optimizer step moves. Use automatic optimization."
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._counts = [0, 0]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if not self.aggressive:
            return
        encoder = set(pl_module.get_submodule(self.encoder).parameters())
        for parameter in pl_module.parameters():
            if (parameter in encoder) == self._decoder_next:
                parameter.grad = None  # None, not zero: with zero gradients Adam still moves by its momentum
        self._counts[self._decoder_next] += 1
        self._stepped = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.aggressive:
            return
        self._window += 1
        loss = _loss(outputs).detach()
        self._loss = loss.to(float64_device(loss.device), torch.float64) + self._loss
        if not self._stepped:  # gradients are being accumulated
            return
        self._stepped = False
        if self._decoder_next:
            self._start_inner_loop()
            return
        self._taken += 1
        if self._taken % self.check_every == 0:
            self._compare_losses(trainer, pl_module)
        self._decoder_next = self._decoder_next or self._taken >= self.inner_steps

    def _start_inner_loop(self) -> None:
        self._taken, self._window, self._loss, self._loss_before = 0, 0, 0.0, math.inf
        self._decoder_next = False

    def _compare_losses(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mean = torch.as_tensor(self._loss / self._window, dtype=torch.float32, device=pl_module.device)
        # A collective: all processes check after the same steps and must decide the same.
        loss = float(trainer.strategy.reduce(mean, reduce_op="mean"))
        self._decoder_next = loss > self._loss_before
        self._window, self._loss, self._loss_before = 0, 0.0, loss

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, count in zip(("encoder_steps", "decoder_steps"), self._counts, strict=True):
            pl_module.log(f"lagging/{name}", float(count), sync_dist=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not self.aggressive or trainer.state.fn != "fit":
            return
        if self.monitor not in trainer.callback_metrics:
            watches = [item for item in trainer.callbacks if isinstance(item, CollapseDiagnostics)]  # type: ignore[attr-defined]
            if any(item.fault for item in watches):
                return  # a diverged epoch has no value
            raise ValueError(
                f"`monitor={self.monitor!r}` is not logged in validation, only {sorted(trainer.callback_metrics)}. "
                "Add certvae.callbacks.CollapseDiagnostics to the trainer's callbacks."
            )
        value = float(trainer.callback_metrics[self.monitor])
        self._below += value < self._best
        self._best = max(self._best, value)
        self.aggressive = self._below < self.patience

    def state_dict(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name in _STATE}
        return kept | {"_loss": float(self._loss)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update({name: state_dict[name] for name in _STATE})


_STATE = ("aggressive", "_best", "_below", "_taken", "_window", "_loss", "_loss_before", "_decoder_next")


def _loss(outputs: Any) -> Tensor:
    return outputs if isinstance(outputs, Tensor) else outputs["loss"]
