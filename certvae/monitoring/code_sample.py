"""A sample of the posteriors of one or several groups of latents, the same on any number of processes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from certvae.reading.captured import Captured
from certvae.theory.row_sample import RowSample

__all__ = ["CodeSample"]


class CodeSample:
    """Mean, log-variance and rate of sampled rows, for each group that has a log-variance.

    Args:
        rows: most rows kept.
        seed: of their choice.
        groups: how many there are.
    """

    def __init__(self, rows: int, seed: int, groups: int = 1) -> None:
        self._sample, self._dims = RowSample(rows, seed), [0] * groups

    def add(self, codes: Sequence[Captured], positions: Tensor, weights: Tensor) -> None:
        """Offer the rows of a batch.

        Args:
            codes: of each group.
            positions: an integer for each row, int64, shape ``(B,)``.
            weights: rows of weight 0 are left out; shape ``(B,)``.
        """
        self._dims = [code.mean.shape[1] if _measurable(code) else 0 for code in codes]
        counted = weights > 0
        if any(self._dims) and bool(counted.any()):
            self._sample.add(torch.cat([_columns(code) for code in codes], dim=1)[counted], positions[counted])

    def gathered(self, all_gather: Callable[[Tensor], Any], device: torch.device) -> list[Captured | None]:
        """The groups' sampled rows of all processes; None for a group without a log-variance. Collectives.

        Args:
            all_gather: a collective, which stacks what the processes give.
            device: where the sample goes.
        """
        # A process that has seen no row does not know the dimensions.
        dims = all_gather(torch.tensor(self._dims, device=device)).view(-1, len(self._dims)).amax(dim=0).tolist()
        widths = [1 + 2 * dim if dim else 0 for dim in dims]
        if not sum(widths):
            return [None] * len(dims)
        whole = self._sample.gather(lambda values: all_gather(values.to(device)), sum(widths)).rows.to(device)
        return [_code(part, dim) if dim else None for part, dim in zip(whole.split(widths, dim=1), dims, strict=True)]


def _measurable(code: Captured) -> bool:
    return code.log_variance is not None and code.rate is not None


def _columns(code: Captured) -> Tensor:
    mean, log_variance, rate = code.mean, code.log_variance, code.rate
    if log_variance is None or rate is None:
        return mean[:, :0].cpu()
    return torch.cat([rate[:, None].to(mean), mean, log_variance.to(mean)], dim=1).cpu()


def _code(columns: Tensor, dim: int) -> Captured:
    rate, mean, log_variance = columns.split([1, dim, dim], dim=1)
    return Captured(mean, log_variance, rate[:, 0])
