"""Data sets and loaders of every kind that several processes may read."""

import os
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    Sampler,
    SequentialSampler,
    TensorDataset,
)

from certvae.datamodules import DigitsDataModule

BATCH = 16
KINDS = (
    "plain",
    "shuffled",
    "sampler",
    "batch_sampler",
    "whole_batches",
    "distributed",
    "distributed_shuffled",
    "distributed_dropping",
)


def rank() -> int:
    """Number of this process in its launch."""
    return int(os.environ.get("RANK", 0))


def digits(rows: int) -> TensorDataset:
    """Images in float64 and labels; no index."""
    data = DigitsDataModule()
    images, labels, _ = data.dataset("val").__getitems__(range(rows))
    return TensorDataset(images.double() / 255, labels)


class Backwards(Sampler[int]):
    """A user's sampler: rows from the last to the first, without the very first."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rows - 1, 0, -1))

    def __len__(self) -> int:
        return self.rows - 1


class Growing(BatchSampler):
    """A user's batch sampler: batches of 1, 2, 3, ... rows in the sampler's order."""

    def __iter__(self) -> Iterator[list[int]]:
        rows, size = list(self.sampler), 1
        while rows:
            yield rows[:size]
            rows, size = rows[size:], size + 1

    def __len__(self) -> int:
        return len(list(iter(self)))


class Stream(IterableDataset[tuple[Tensor, ...]]):
    """Rows that processes share among themselves; ``idle`` is the process that gets none."""

    def __init__(self, data: TensorDataset, world: int, idle: int | None = None) -> None:
        readers = [process for process in range(world) if process != idle]
        self.rows: list[Any] = []
        if rank() in readers:
            self.rows = [data[row] for row in range(readers.index(rank()), len(data), len(readers))]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return iter(self.rows)


class Lengthy(Stream):
    """The first batches of some rows, with a length."""

    def __init__(self, data: TensorDataset, batches: int) -> None:
        self.rows = [data[row] for row in range(batches * BATCH)]

    def __len__(self) -> int:
        return len(self.rows)


def loader(kind: str, rows: int, world: int) -> DataLoader[Any]:
    """A loader of one of the ``KINDS`` over the first digits, in batches of 16."""
    data = digits(rows)
    if kind.startswith("distributed"):
        shuffle, drop = kind.endswith("shuffled"), kind.endswith("dropping")
        return DataLoader(data, BATCH, sampler=DistributedSampler(data, world, rank(), shuffle, 3, drop))
    if kind == "batch_sampler":
        return DataLoader(data, batch_sampler=Growing(SequentialSampler(data), BATCH, False))
    if kind == "whole_batches":
        return DataLoader(data, batch_size=None, sampler=BatchSampler(SequentialSampler(data), BATCH, False))
    if kind == "sampler":
        return DataLoader(data, BATCH, sampler=Backwards(rows))
    return DataLoader(data, BATCH, shuffle=kind == "shuffled")
