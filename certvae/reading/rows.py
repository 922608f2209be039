"""Positions of the rows that a process sees, so that padding is not counted and noise depends on the row."""

import math
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import Trainer
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from certvae.reading.streams import FAULTS, drops_rows, goes_on, is_stream, own_index

__all__ = ["Attendance", "RowPositions", "first_loader", "is_truncated"]


class RowPositions:
    """Positions in the data set of the rows that this process sees, batch by batch.

    A ``DistributedSampler`` splits one order of the rows: process ``r`` of ``w`` gets the positions ``r, r + w, ...``.
    It may be the user's, or Lightning's, also around the user's own sampler. Without ``drop_last`` it repeats the first
    rows until all processes have equally many. These repeats have positions beyond the data set and get weight 0, in
    shuffled order too. Positions refer to the *order*. They name the same row on any number of processes if the order
    is the same. With ``shuffle=True`` this holds between ``DistributedSampler`` of one seed and epoch, but not between
    a ``DistributedSampler`` and the ``RandomSampler`` of a single process. With ``batch_size=None`` the sampler splits
    whole batches. Processes with the same sampler rank, as in tensor parallelism, read the same rows; only the first
    of them counts them.

    Without a ``DistributedSampler`` every row is counted as it is read, with a warning on several processes. Rows of a
    stream with an index have the index as position. The constructor is a collective: every process must call it.

    Args:
        loader: dataloader of the data set.
        trainer: gives rank and number of processes.

    Attributes:
        streamed: whether the data set is a stream.
        dealt: whether a ``DistributedSampler`` splits the rows, or a single process reads a data set with positions.
    """

    def __init__(self, loader: Any, trainer: Trainer) -> None:
        sampler = _distributed_sampler(loader)
        self._loader, self.streamed = loader, is_stream(loader)
        self.dealt = sampler is not None or (trainer.world_size == 1 and not self.streamed)
        self.rank, self.world, self.total, self.seen = trainer.global_rank, trainer.world_size, float("inf"), 0
        self.whole_batches = isinstance(loader, DataLoader) and loader.batch_sampler is None
        if sampler is not None:
            self.rank, self.world, self.total = sampler.rank, sampler.num_replicas, len(sampler.dataset)  # type: ignore[arg-type]
        if _read_before(trainer, -1 if sampler is None else sampler.rank):
            self.total = 0
        if trainer.world_size > 1:
            _warn_of_doubt(loader, sampler)

    def next(self, count: int, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Positions of the next ``count`` rows, int64, and their weights: 1, or 0 if not counted.

        Args:
            count: number of rows in the batch.
            index: of the rows, int64, shape ``(count,)``; None if the batch has none.
        """
        taken = torch.full((count,), self.seen) if self.whole_batches else torch.arange(self.seen, self.seen + count)
        self.seen += 1 if self.whole_batches else count
        dealt = taken * self.world + self.rank
        positions = (dealt << 32) + torch.arange(count) if self.whole_batches else dealt
        named = own_index(self._loader, index, count)
        return positions if named is None else named.cpu(), (dealt < self.total).double()


def _distributed_sampler(loader: Any) -> DistributedSampler[Any] | None:
    # The batch sampler first: with a user's batch sampler, the DataLoader also has a plain sampler that it ignores.
    for holder in (getattr(loader, "batch_sampler", None), loader):
        sampler = getattr(holder, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            return sampler
    return None


def _read_before(trainer: Trainer, sampler_rank: int) -> bool:
    """Whether a process with a lower rank has the same sampler rank; -1 means that there is no such sampler."""
    strategy = trainer.strategy
    ranks = strategy.all_gather(torch.tensor([sampler_rank], device=strategy.root_device)).flatten().tolist()
    return sampler_rank >= 0 and sampler_rank in ranks[: trainer.global_rank]


def _warn_of_doubt(loader: Any, sampler: DistributedSampler[Any] | None) -> None:
    batch_sampler = getattr(loader, "batch_sampler", None)
    if sampler is None:
        rank_zero_warn(
            "Several processes read data without a DistributedSampler. If two of them read the same row, it is counted "
            "twice, and bounds are too tight."
        )
    elif batch_sampler is not None and type(batch_sampler) is not BatchSampler and _pads(sampler):
        rank_zero_warn(
            f"A DistributedSampler repeats some rows, and a {type(batch_sampler).__name__} groups them in batches. If "
            "it keeps the sampler's order, the repeats are left out. If it sorts rows, other rows are left out instead."
        )


def _pads(sampler: DistributedSampler[Any]) -> bool:
    return sampler.total_size > len(sampler.dataset)  # type: ignore[arg-type]


def first_loader(loaders: Any) -> Any:
    """The first dataloader in any collection that a trainer accepts."""
    if isinstance(loaders, CombinedLoader):
        loaders = loaders.flattened
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    return first_loader(loaders[0]) if isinstance(loaders, list | tuple) else loaders


def is_truncated(num_batches: float, loader: Any) -> bool:
    """Whether the trainer reads fewer batches than the loader has (``limit_*_batches``, ``fast_dev_run``)."""
    # A loader without a length is read to its end, unless limited.
    return num_batches < _length(loader, math.inf)


def _length(loader: Any, otherwise: Any) -> Any:
    """Number of batches of a loader; ``otherwise`` if it has no length."""
    try:
        return len(loader)
    except TypeError:
        return otherwise


class Attendance:
    """Compares the rows and batches that this process read with those planned.

    Args:
        loader: dataloader of the data set.
        num_batches: number of batches that the trainer reads; infinity if unknown.
    """

    def __init__(self, loader: Any, num_batches: float) -> None:
        self._loader, self._num_batches = loader, num_batches
        self._limited = is_truncated(num_batches, loader)
        self._planned = torch.tensor([num_batches, _planned_rows(loader)], dtype=torch.float64)
        self._begun, self._seen = 0, torch.zeros(2, dtype=torch.float64)

    def begin(self) -> None:
        """Record that a batch was loaded."""
        self._begun += 1

    def end(self, rows: int) -> None:
        """Record that the batch was read, with ``rows`` rows."""
        self._seen = self._seen + torch.tensor([1.0, rows], dtype=torch.float64)

    @property
    def missing(self) -> bool:
        """Whether rows are missing: because of a limit, an early end, an aborted step, or dropped rows."""
        short = bool((self._seen < self._planned)[self._planned.isfinite()].any())
        return self._limited or short or self._begun > int(self._seen[0]) or any(self.faults)

    @property
    def faults(self) -> list[bool]:
        """Which of ``certvae.reading.streams.FAULTS`` the stream has. A stream with a length is read once more."""
        if self._limited or not is_stream(self._loader):
            return [False] * len(FAULTS)
        short = bool(self._seen[0] < self._planned[0] < math.inf)
        return [drops_rows(self._loader), short, not short and goes_on(self._loader, self._num_batches)]

    def counts(self) -> Tensor:
        """Counts of batches and rows, read and planned, and the faults; they can be summed over processes.

        Returns:
            float64, shape ``(4 + faults,)``.
        """
        planned = self._planned.clone()
        if self._limited:  # of all: 'only 2 of 2' would say that none is missing
            planned[0] = _length(self._loader, planned[0])
        return torch.cat([self._seen, planned, torch.tensor(self.faults, dtype=torch.float64)])


def _planned_rows(loader: Any) -> float:
    """Number of rows that a loader yields; infinity if unknown (streams, custom batch samplers)."""
    sampler, size = getattr(loader, "sampler", None), getattr(loader, "batch_size", None)
    batches = getattr(loader, "batch_sampler", None)
    if size is None or type(batches) is not BatchSampler or not hasattr(sampler, "__len__"):
        return math.inf
    rows = len(sampler)  # type: ignore[arg-type]
    return rows - rows % size if loader.drop_last else rows
