"""A sample of rows that no order of the rows, and no split over processes, changes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from certvae.noise import row_uniform

__all__ = ["RowSample"]


class RowSample:
    """The rows with the smallest hash of their index.

    Args:
        size: rows kept.
        seed: of the hash.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed, self.seen = size, seed, 0
        self.keys = torch.empty(0, dtype=torch.float64)
        self.rows = torch.empty(0, 0, dtype=torch.float64)

    def add(self, features: Tensor, index: Tensor | None) -> None:
        """Offer rows, shape ``(B, d)``; without an index their order of arrival stands for it."""
        count = features.shape[0]
        positions = torch.arange(self.seen, self.seen + count) if index is None else index.cpu()
        self.seen += count
        keys = row_uniform(positions, 1, self.seed)[:, 0]
        rows = features.cpu()
        self._keep(torch.cat([self.keys, keys]), torch.cat([self.rows, rows]) if self.rows.numel() else rows)

    def _keep(self, keys: Tensor, rows: Tensor) -> None:
        order = keys.argsort(stable=True)[: self.size]
        self.keys, self.rows = keys[order], rows[order]

    def gather(self, all_gather: Callable[[Tensor], Any]) -> Tensor:
        """The sample over all processes, the same on each; duplicates of a row are dropped."""
        padding = self.size - self.keys.numel()
        keys = torch.nn.functional.pad(self.keys, (0, padding), value=torch.inf)
        rows = torch.nn.functional.pad(self.rows, (0, 0, 0, padding))
        keys, rows = all_gather(keys).reshape(-1).cpu(), all_gather(rows).reshape(-1, rows.shape[1]).cpu()
        self._keep(keys[keys.isfinite()], rows[keys.isfinite()])
        fresh = torch.cat([torch.ones(1, dtype=torch.bool), self.keys[1:] != self.keys[:-1]])
        return self.rows[fresh]
