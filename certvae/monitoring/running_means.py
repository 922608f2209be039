"""Means over the last steps of all processes, kept on the device."""

import torch
from pytorch_lightning import Trainer
from torch import Tensor

from certvae.theory.arguments import float64_device

__all__ = ["RunningMeans"]

WINDOW = 50  # steps, of which older ones weigh less and less


class RunningMeans:
    """Exponential means of what each step gives.

    Attributes:
        sums: weighted sums, and last the sum of the weights, float64, shape ``(n + 1,)``; None before the first step.
    """

    def __init__(self) -> None:
        self.sums: Tensor | None = None

    def add(self, trainer: Trainer, batch: Tensor, share: float | Tensor = 1.0) -> Tensor:
        """The means with those of this batch, which every process must give, shape ``(n,)``.

        A batch that is not finite counts for nothing.

        Args:
            trainer: knows the processes.
            batch: means over its rows, shape ``(n,)``.
            share: of its rows that count.
        """
        batch = (torch.cat([batch, torch.ones_like(batch[:1])]) * share).detach()
        if trainer.world_size > 1:
            batch = trainer.strategy.reduce(batch, reduce_op="mean")
        batch = batch.to(float64_device(batch.device), torch.float64)
        # A step that has diverged would stay in the sums for ever; the same on all processes, without waiting for it.
        batch = torch.where(batch.isfinite().all(), batch, torch.zeros_like(batch))
        self.sums = batch if self.sums is None else (1 - 1 / WINDOW) * self.sums.to(batch.device) + batch
        return self.sums[:-1] / self.sums[-1].clamp(min=1e-9)  # no row has counted yet

    @property
    def means(self) -> Tensor | None:
        """The means, shape ``(n,)``."""
        return None if self.sums is None else self.sums[:-1] / self.sums[-1]
