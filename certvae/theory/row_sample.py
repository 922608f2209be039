"""A random sample of rows that does not depend on their order or on the number of processes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from certvae.theory.row_noise import row_uniform

__all__ = ["RowSample"]


class RowSample:
    """Keeps the rows whose index has the smallest hash. Memory holds at most twice ``size`` rows and a batch.

    Args:
        size: number of rows in the sample.
        seed: of the hash.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._parts: list[tuple[Tensor, Tensor]] = []

    def add(self, features: Tensor, index: Tensor) -> None:
        """Add rows, shape ``(B, d)``, with an integer that identifies each, shape ``(B,)``."""
        self._parts.append((row_uniform(index.cpu(), 1, self.seed)[:, 0], features.cpu()))
        if sum(len(keys) for keys, _ in self._parts) > 2 * self.size:
            self._merge()

    @property
    def rows(self) -> Tensor:
        """The sample sorted by hash, shape ``(n, d)``; ``(0, 0)`` if no row was added."""
        return self._merge()[1]

    @property
    def keys(self) -> Tensor:
        """The hash of each row of the sample, increasing, float64, shape ``(n,)``."""
        return self._merge()[0]

    def restore(self, keys: Tensor, rows: Tensor) -> None:
        """Restore the ``keys``, shape ``(n,)``, and ``rows``, shape ``(n, d)``, of a saved sample."""
        self._parts = [(keys, rows)] if rows.shape[1] else []

    def _merge(self) -> tuple[Tensor, Tensor]:
        if not self._parts:
            return torch.empty(0, dtype=torch.float64), torch.empty(0, 0, dtype=torch.float64)
        keys, rows = zip(*self._parts, strict=True)
        self._parts = [self._smallest(torch.cat(keys), torch.cat(rows))]
        return self._parts[0]

    def _smallest(self, keys: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        order = keys.argsort(stable=True)
        keys = keys[order]
        fresh = torch.cat([torch.ones_like(keys[:1], dtype=torch.bool), keys[1:] != keys[:-1]])
        chosen = order[fresh][: self.size]
        return keys[fresh][: self.size], rows[chosen]

    def gather(self, all_gather: Callable[[Tensor], Any], width: int | None = None) -> "RowSample":
        """The sample over all processes, equal on each. A row that several processes have seen counts once.

        Args:
            all_gather: a collective that stacks the tensors of all processes.
            width: number of columns, needed if a process may have no rows. All processes must pass it.
        """
        keys, rows = self._merge()
        if len(keys) == 0 and width is not None:
            rows = torch.empty(0, width, dtype=torch.float64)
        everywhere = all_gather(pad(keys, (0, self.size - keys.numel()), value=torch.inf)).reshape(-1, self.size).cpu()
        whole, known = RowSample(self.size, self.seed), everywhere[everywhere.isfinite()].unique()  # in order
        if not len(known):
            return whole
        # Send chosen rows only: each of a thousand processes sends about a thousandth of its sample.
        chosen, mine = everywhere <= known[: self.size][-1], keys <= known[: self.size][-1]
        most = int(chosen.sum(dim=1).max())
        sent = pad(rows[mine].double(), (0, 0, 0, most - int(mine.sum())))
        rows = all_gather(sent).reshape(len(everywhere), most, sent.shape[1]).cpu()
        whole.restore(everywhere[chosen], rows[chosen[:, :most]])
        return whole
