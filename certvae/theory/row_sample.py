"""A sample of rows that no order of the rows, and no split over processes, changes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from certvae.theory.row_noise import row_uniform

__all__ = ["RowSample"]


class RowSample:
    """The rows with the smallest hash of their index.

    Args:
        size: rows kept.
        seed: of the hash.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.keys = torch.empty(0, dtype=torch.float64)
        self.rows = torch.empty(0, 0, dtype=torch.float64)

    def add(self, features: Tensor, index: Tensor) -> None:
        """Offer rows, shape ``(B, d)``, with the integer that stands for each, shape ``(B,)``."""
        keys, rows = row_uniform(index.cpu(), 1, self.seed)[:, 0], features.cpu()
        rows = torch.cat([self.rows, rows]) if self.rows.numel() else rows
        self.keys, self.rows = self._smallest(torch.cat([self.keys, keys]), rows)

    def _smallest(self, keys: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        order = keys.argsort(stable=True)
        keys = keys[order]
        fresh = torch.cat([torch.ones_like(keys[:1], dtype=torch.bool), keys[1:] != keys[:-1]])
        return keys[fresh][: self.size], rows[order][fresh][: self.size]

    def gather(self, all_gather: Callable[[Tensor], Any]) -> "RowSample":
        """The sample over all processes, the same on each; a row that several of them have seen counts once."""
        padding = self.size - self.keys.numel()
        keys = torch.nn.functional.pad(self.keys, (0, padding), value=torch.inf)
        rows = torch.nn.functional.pad(self.rows, (0, 0, 0, padding))
        keys, rows = all_gather(keys).reshape(-1).cpu(), all_gather(rows).flatten(0, -2).cpu()
        whole = RowSample(self.size, self.seed)
        whole.keys, whole.rows = self._smallest(keys[keys.isfinite()], rows[keys.isfinite()])
        return whole
