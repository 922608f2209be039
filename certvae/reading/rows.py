"""Which rows of the set a process sees, so that padding is not counted and noise belongs to a row."""

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
    """Positions in the whole set of the rows that this process sees, batch by batch.

    A ``DistributedSampler``, given by the user or put in by Lightning, also around the user's own sampler, deals out
    one order of the rows: process ``r`` of ``w`` gets the positions ``r, r + w, ...``. Without ``drop_last`` it
    repeats first rows until all processes have as many; positions beyond the set are these repeats, and weigh 0. That
    holds for a shuffled order too. Positions are of the *order*: they name the same row on any number of processes if
    the order is the same, and with ``shuffle=True`` that is so among ``DistributedSampler`` of one seed and epoch, but
    not between one of them and the ``RandomSampler`` of a single process. With ``batch_size=None`` the sampler deals
    out whole batches. Processes that share a sampler's rank, as under tensor parallelism, read the same rows: the
    first of them counts.

    Rows that no ``DistributedSampler`` deals out count as they come, with a warning on several processes. Those of a
    stream are at the places that their index names, where they have one. Making this object is a collective: every
    process must.

    Args:
        loader: the dataloader of the set.
        trainer: knows the processes.

    Attributes:
        streamed: whether the set is a stream.
        dealt: whether a ``DistributedSampler`` deals the rows out, or a single process reads a set that has places.
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
        """Positions of the next ``count`` rows, int64, and their weights: 1, or 0 for what is not counted.

        Args:
            count: rows of the batch.
            index: of the rows, int64, shape ``(count,)``, where the batch has one.
        """
        taken = torch.full((count,), self.seen) if self.whole_batches else torch.arange(self.seen, self.seen + count)
        self.seen += 1 if self.whole_batches else count
        dealt = taken * self.world + self.rank
        positions = (dealt << 32) + torch.arange(count) if self.whole_batches else dealt
        named = own_index(self._loader, index, count)
        return positions if named is None else named.cpu(), (dealt < self.total).double()


def _distributed_sampler(loader: Any) -> DistributedSampler[Any] | None:
    # The batch sampler first: beside one of the user's, a DataLoader holds a plain sampler that it does not use.
    for holder in (getattr(loader, "batch_sampler", None), loader):
        sampler = getattr(holder, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            return sampler
    return None


def _read_before(trainer: Trainer, sampler_rank: int) -> bool:
    """Whether a process before this one has the same sampler rank; -1 stands for no such sampler."""
    strategy = trainer.strategy
    ranks = strategy.all_gather(torch.tensor([sampler_rank], device=strategy.root_device)).flatten().tolist()
    return sampler_rank >= 0 and sampler_rank in ranks[: trainer.global_rank]


def _warn_of_doubt(loader: Any, sampler: DistributedSampler[Any] | None) -> None:
    batch_sampler = getattr(loader, "batch_sampler", None)
    if sampler is None:
        rank_zero_warn(
            "Several processes read data without a DistributedSampler: rows that more than one of them reads are "
            "counted more than once, and bounds are then too tight."
        )
    elif batch_sampler is not None and type(batch_sampler) is not BatchSampler and _pads(sampler):
        rank_zero_warn(
            f"A DistributedSampler repeats some rows, and a {type(batch_sampler).__name__} makes batches of them. The "
            "repeats are left out if it keeps the sampler's order; if it sorts rows, others are left out instead."
        )


def _pads(sampler: DistributedSampler[Any]) -> bool:
    return sampler.total_size > len(sampler.dataset)  # type: ignore[arg-type]


def first_loader(loaders: Any) -> Any:
    """The first of the dataloaders that a trainer holds, in whatever collection."""
    if isinstance(loaders, CombinedLoader):
        loaders = loaders.flattened
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    return first_loader(loaders[0]) if isinstance(loaders, list | tuple) else loaders


def is_truncated(num_batches: float, loader: Any) -> bool:
    """Whether the trainer takes fewer batches than the loader has (``limit_*_batches``, ``fast_dev_run``)."""
    # A loader without a length is seen to its end, unless limited.
    return num_batches < _length(loader, math.inf)


def _length(loader: Any, otherwise: Any) -> Any:
    """Batches of a loader; ``otherwise`` where it does not say."""
    try:
        return len(loader)
    except TypeError:
        return otherwise


class Attendance:
    """Compares what this process saw of a set with what was planned.

    Args:
        loader: the dataloader of the set.
        num_batches: how many of its batches the trainer takes; infinity where nobody knows.
    """

    def __init__(self, loader: Any, num_batches: float) -> None:
        self._loader, self._num_batches = loader, num_batches
        self._limited = is_truncated(num_batches, loader)
        self._planned = torch.tensor([num_batches, _planned_rows(loader)], dtype=torch.float64)
        self._begun, self._seen = 0, torch.zeros(2, dtype=torch.float64)

    def begin(self) -> None:
        """A batch was handed out."""
        self._begun += 1

    def end(self, rows: int) -> None:
        """It was read, with so many rows."""
        self._seen = self._seen + torch.tensor([1.0, rows], dtype=torch.float64)

    @property
    def missing(self) -> bool:
        """Whether a part of the set is missing: by a limit, an early end, a step that broke off, or dropped rows."""
        short = bool((self._seen < self._planned)[self._planned.isfinite()].any())
        return self._limited or short or self._begun > int(self._seen[0]) or any(self.faults)

    @property
    def faults(self) -> list[bool]:
        """Which of ``certvae.reading.streams.FAULTS`` the stream has; it is read once more if it says a length."""
        if self._limited or not is_stream(self._loader):
            return [False] * len(FAULTS)
        short = bool(self._seen[0] < self._planned[0] < math.inf)
        return [drops_rows(self._loader), short, not short and goes_on(self._loader, self._num_batches)]

    def counts(self) -> Tensor:
        """Batches and rows that were seen and planned, and the faults; they add up over processes.

        Returns:
            float64, shape ``(4 + faults,)``.
        """
        planned = self._planned.clone()
        if self._limited:  # of all: 'only 2 of 2' would say that none is missing
            planned[0] = _length(self._loader, planned[0])
        return torch.cat([self._seen, planned, torch.tensor(self.faults, dtype=torch.float64)])


def _planned_rows(loader: Any) -> float:
    """Rows that a loader hands out, or infinity where nobody knows: of streams, and of batches made by others."""
    sampler, size = getattr(loader, "sampler", None), getattr(loader, "batch_size", None)
    batches = getattr(loader, "batch_sampler", None)
    if size is None or type(batches) is not BatchSampler or not hasattr(sampler, "__len__"):
        return math.inf
    rows = len(sampler)  # type: ignore[arg-type]
    return rows - rows % size if loader.drop_last else rows
