"""Streams: iterable data sets, whose length may be wrong and whose rows no sampler splits over processes."""

from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import IterableDataset

from certvae.theory.row_noise import row_hash

__all__ = ["FAULTS", "READ_TWICE", "CountedRows", "drops_rows", "goes_on", "is_stream", "own_index"]

READ_TWICE = "rows: "  # prefix of a finding about rows; other findings are about a witness or an encoder
MANY = 0.01  # tolerated share of rows with equal contents
FAULTS = {
    "dropped": "the stream drops its last rows, so the rows depend on the number of processes: give "
    "`drop_last=False` to StreamingDataset or DataLoader",
    "short": "the stream ended before the length that it states: set no length (WebDataset: omit `with_length`), "
    "or the number of rows that this process reads",
    "long": "the stream goes on after the length that it states: set no length (WebDataset: omit `with_length` "
    "and `with_epoch`), or load it with num_workers=0",
}
ADVICE = (
    "rows that were compared had been counted before, so the bounds are too tight: let each process read different "
    "rows (WebDataset: nodesplitter=wds.split_by_node and no `resampled`; torch: an IterableDataset that yields every "
    "world-size-th row, or a DistributedSampler)"
)
_GOES_ON: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def is_stream(loader: Any) -> bool:
    """Whether a loader reads, or itself is, an iterable data set."""
    return isinstance(loader, IterableDataset) or isinstance(getattr(loader, "dataset", None), IterableDataset)


def drops_rows(loader: Any) -> bool:
    """Whether a stream drops rows at its end; LitData does so by default on several processes."""
    holders = (loader, getattr(loader, "dataset", None))
    return is_stream(loader) and any(getattr(holder, "drop_last", False) is True for holder in holders)


def goes_on(loader: Any, num_batches: float) -> bool:
    """Whether a stream has more batches than its length states; a trainer would not read them.

    The stream is read once more to find out, without the model. The result is cached for the life of the loader.

    Args:
        loader: any dataloader.
        num_batches: number of batches that the trainer reads.
    """
    if not is_stream(loader) or num_batches == float("inf"):
        return False
    if loader not in _GOES_ON:
        with isolate_rng():
            _GOES_ON[loader] = any(True for _ in islice(loader, int(num_batches), None))
    return _GOES_ON[loader]


def own_index(loader: Any, index: Tensor | None, count: int) -> Tensor | None:
    """The index of a stream's rows if it is valid: integers from 0, all different in the batch; otherwise None."""
    if not is_stream(loader) or index is None or len(index) != count or not count:
        return None
    return index.long() if int(index.min()) >= 0 and index.unique().numel() == count else None


class CountedRows:
    """Detects rows that are counted more than once, by one process or by several.

    It keeps the contents and indices with the smallest hashes. All processes keep the same ones of the rows that they
    share. So the share of repeated rows can be estimated from those kept, in bounded memory.

    Args:
        size: number of rows kept.
    """

    def __init__(self, size: int = 1024) -> None:
        self.size = size
        empty = torch.empty(0, dtype=torch.int64)
        self._kept = [(empty, empty), (empty, empty)]  # hashes and counts, of contents, and of contents with index
        self._named = True

    def add(self, inputs: Tensor, index: Tensor | None) -> None:
        """Count the rows of a batch.

        Args:
            inputs: shape ``(B, ...)``.
            index: of the rows, int64, shape ``(B,)``, or None.
        """
        if inputs.is_nested or not len(inputs):  # rows of different lengths are not hashed
            self._named &= not inputs.is_nested
            return
        contents = named = row_hash(inputs)
        if index is None or len(index) != len(inputs):
            self._named = False
        else:
            named = row_hash(inputs, index.to(inputs.device))
            self._named &= index.unique().numel() == named.unique().numel()  # else it is a class or a site
        for table, keys in enumerate((contents.cpu(), named.cpu())):
            self._kept[table] = self._smallest(*self._kept[table], keys)

    def _smallest(self, keys: Tensor, counts: Tensor, more: Tensor) -> tuple[Tensor, Tensor]:
        distinct, place = torch.cat([keys, more]).unique(return_inverse=True)  # in order
        totals = torch.zeros_like(distinct).index_add_(0, place, torch.cat([counts, torch.ones_like(more)]))
        return distinct[: self.size], totals[: self.size]

    def gather(self, trainer: Trainer, device: torch.device) -> str:
        """The finding in words, equal on all processes; empty if there is none. Runs collectives."""
        own = [self._padded(*table) for table in self._kept]
        named = torch.full_like(own[0], int(self._named))
        found = trainer.strategy.all_gather(torch.stack([*own, named]).to(device)).view(-1, 3, 2, self.size).cpu()
        again, rows = _repeats(found[:, 0], MANY)
        if not again and bool(found[:, 2].all()):
            again, rows = _repeats(found[:, 1], 1.0)
        return f"{READ_TWICE}{again:,} of {rows:,} {ADVICE}" if again else ""

    def _padded(self, keys: Tensor, counts: Tensor) -> Tensor:
        padded = torch.stack([torch.full((self.size,), torch.iinfo(torch.int64).max), keys.new_zeros(self.size)])
        padded[:, : len(keys)] = torch.stack([keys, counts])
        return padded


def _repeats(tables: Tensor, own_share: float) -> tuple[int, int]:
    """Number of repeated rows, and number of rows compared.

    Different rows may have equal contents. So the number of repeats is 0 if it is at most ``own_share`` of the rows,
    or if one process alone sees more than this share of repeats.

    Args:
        tables: hashes and counts of each process, int64, shape ``(processes, 2, size)``.
        own_share: share of rows that the data set itself may repeat; 1 if each row has an index, so that every repeat
            counts.
    """
    keys, counts = tables[:, 0], tables[:, 1]
    known = (keys <= keys.amax(dim=1).min()) & (counts > 0)  # above this hash some process has kept no rows

    distinct, place = keys[known].unique(return_inverse=True)
    total = torch.zeros_like(distinct).index_add_(0, place, counts[known])
    again, rows = int((total - 1).sum()), int(total.sum())
    within = int((counts[known] - 1).sum())
    natural = own_share < 1 and (within > own_share * rows or again <= own_share * rows)
    return (0 if natural else again), rows
