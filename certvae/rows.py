"""Which rows of the set a process sees, so that padding is not counted and noise belongs to a row."""

from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from pytorch_lightning import Trainer
from pytorch_lightning.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DistributedSampler

__all__ = ["RowPositions", "first_loader", "is_cut_short"]


class RowPositions:
    """Positions in the whole set of the rows that this process sees, batch by batch.

    A ``DistributedSampler`` gives process ``r`` of ``w`` the rows ``r, r + w, ...`` of its order, which it pads to a
    multiple of ``w``; rows at positions beyond the set are padding. Rows of any other sampler are counted as they come.

    Args:
        loader: the dataloader of the set.
        trainer: knows the rank.
    """

    def __init__(self, loader: Any, trainer: Trainer) -> None:
        sampler = getattr(loader, "sampler", None)
        self.total = len(sampler.dataset) if isinstance(sampler, DistributedSampler) else None  # type: ignore[arg-type]
        if trainer.world_size > 1 and self.total is None:
            rank_zero_warn(
                "Several processes read data without a DistributedSampler: rows that more than one of them reads are "
                "counted more than once, and bounds are then too tight."
            )
        self.rank, self.world, self.seen = trainer.global_rank, trainer.world_size, 0

    def next(self, count: int) -> tuple[Tensor, Tensor]:
        """Positions of the next ``count`` rows, int64, and their weights: 1, or 0 for padding."""
        positions = torch.arange(self.seen, self.seen + count) * self.world + self.rank
        self.seen += count
        weights = torch.ones(count, dtype=torch.float64)
        if self.total is not None:
            weights[positions >= self.total] = 0
        return positions, weights


def first_loader(loaders: Any) -> Any:
    """The first of the dataloaders that a trainer holds, in whatever collection."""
    if isinstance(loaders, CombinedLoader):
        loaders = loaders.flattened
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    return first_loader(loaders[0]) if isinstance(loaders, list | tuple) else loaders


def is_cut_short(num_batches: float, loader: Any) -> bool:
    """Whether the trainer takes fewer batches than the loader has (``limit_*_batches``, ``fast_dev_run``)."""
    try:
        return num_batches < len(loader)
    except TypeError:  # a loader without a length is seen to its end, unless limited
        return num_batches != float("inf")
