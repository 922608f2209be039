"""Exponential means over the latest steps of all processes, kept on the device."""

import torch
from pytorch_lightning import Trainer
from torch import Tensor

from certvae.theory.arguments import float64_device

__all__ = ["RunningMeans"]

WINDOW = 50  # steps; older steps have exponentially smaller weights


class RunningMeans:
    """Exponential means of the values of each step.

    Attributes:
        sums: weighted sums, then the sum of the weights, float64, shape ``(n + 1,)``; None before the first step.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def add(self, trainer: Trainer, batch: Tensor, share: float | Tensor = 1.0) -> Tensor:
        """Add a batch and return the new means, shape ``(n,)``; a collective.

        Batches with values that are not finite are ignored.

        Args:
            trainer: the trainer of the processes.
            batch: means over the rows of the batch, shape ``(n,)``.
            share: share of the batch's rows that count.
        """
        batch = (torch.cat([batch, torch.ones_like(batch[:1])]) * share).detach()
        if trainer.world_size > 1:
            batch = trainer.strategy.reduce(batch, reduce_op="mean")
        batch = batch.to(float64_device(batch.device), torch.float64)
        # A diverged step would stay in the sums forever. The same on all processes, without waiting for the device.
        batch = torch.where(batch.isfinite().all(), batch, torch.zeros_like(batch))
        self.sums = batch if self.sums is None else (1 - 1 / WINDOW) * self.sums.to(batch.device) + batch
        return self.sums[:-1] / self.sums[-1].clamp(min=1e-9)  # the sum is 0 until a row counts

    @property
    def means(self) -> Tensor | None:
        """The means, shape ``(n,)``."""
        return None if self.sums is None else self.sums[:-1] / self.sums[-1]
