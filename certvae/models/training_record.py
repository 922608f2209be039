"""What the steps of a training epoch add up on the device, so that none of them waits for it."""

import math

import torch
from torch import Tensor

__all__ = ["TrainingRecord"]


class TrainingRecord:
    """Sums of losses over an epoch's rows, and the first step whose loss was not finite.

    Nothing is read before the epoch ends: reading a value waits for everything that the device has still to do. So does
    a copy from the host, which is why numbers are filled in.

    Args:
        like: a tensor whose device and type are taken over.

    Attributes:
        sums: rows and the sum of their losses, then both of the alignment loss, shape ``(4,)``.
        fault: batch index and loss of the first step whose loss was not finite, shape ``(2,)``; the index is infinite
            if there was none.
    """

    def __init__(self, like: Tensor) -> None:
        self.sums = like.new_zeros(4)
        self.fault = like.new_zeros(2).fill_(math.inf)

    @torch.no_grad()
    def add(self, batch_idx: int, rows: int, loss: Tensor, alignment: Tensor | None = None) -> None:
        """Add a step.

        Args:
            batch_idx: its index in the epoch.
            rows: of the batch.
            loss: mean over the batch, a scalar.
            alignment: likewise, if there is such a term.
        """
        one, zero = torch.ones_like(loss), torch.zeros_like(loss)
        means = [one, loss, zero, zero] if alignment is None else [one, loss, one, alignment]
        self.sums = self.sums + torch.stack(means).to(self.sums) * rows
        step = torch.stack([torch.full_like(loss, batch_idx), loss]).to(self.fault)
        first = ~step[1].isfinite() & self.fault[0].isinf()
        self.fault = torch.where(first, step, self.fault)
