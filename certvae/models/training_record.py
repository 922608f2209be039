"""Sums over a training epoch, kept on the device so that no step waits for it."""

import math

import torch
from torch import Tensor

__all__ = ["TrainingRecord"]


class TrainingRecord:
    """Sums of losses over an epoch's rows, and the first step whose loss was not finite.

    No value is read before the epoch ends, because reading waits for all work of the device. A copy from the host waits
    too, so numbers are written with ``fill_``.

    Args:
        like: a tensor with the device and dtype to use.

    Attributes:
        sums: number of rows and sum of losses, then the same two for the alignment loss, shape ``(4,)``.
        fault: batch index and loss of the first step whose loss was not finite, shape ``(2,)``; the index is infinite
            if there was none.
    """

    def __init__(self, like: Tensor) -> None:
        self.sums = like.new_zeros(4)
        self.fault = like.new_zeros(2).fill_(math.inf)

    @torch.no_grad()
    def add(self, batch_idx: int, rows: int, loss: Tensor, alignment: Tensor | None = None) -> None:
        """Add the values of one step.

        Args:
            batch_idx: index of the step in the epoch.
            rows: number of rows of the batch.
            loss: mean over the batch, a scalar.
            alignment: mean alignment loss over the batch in nats, a scalar, if there is this term.
        """
        one, zero = torch.ones_like(loss), torch.zeros_like(loss)
        means = [one, loss, zero, zero] if alignment is None else [one, loss, one, alignment]
        self.sums = self.sums + torch.stack(means).to(self.sums) * rows
        step = torch.stack([torch.full_like(loss, batch_idx), loss]).to(self.fault)
        first = ~step[1].isfinite() & self.fault[0].isinf()
        self.fault = torch.where(first, step, self.fault)
