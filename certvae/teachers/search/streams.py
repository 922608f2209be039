"""A search over a stream: as many batches on each process, every row, and each of them once."""

from collections.abc import Iterator
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning import Trainer
from torch import Tensor

from certvae.reading.streams import FAULTS, READ_TWICE, CountedRows, drops_rows, goes_on, is_stream
from certvae.teachers.search.settings import TeacherSearchError

__all__ = ["EvenBatches", "check_all_read", "check_read_once"]


class EvenBatches:
    """The batches of a stream, and empty ones until the stream of every process has ended.

    Processes that train wait for each other at every batch, also in a search, which Lightning would leave hanging where
    one has more batches. A stream that is read through this has no length: it is read to its end.

    Args:
        loader: of the training rows; it must give each process a batch.

    Raises:
        TeacherSearchError: while it is read, if a process has no batch.
    """

    def __init__(self, loader: Any) -> None:
        self.loader, self.dataset = loader, getattr(loader, "dataset", None)
        self.drop_last = drops_rows(loader)

    def __iter__(self) -> Iterator[Any]:
        batches, batch = iter(self.loader), None
        while True:
            following = next(batches, None)
            ended = _everywhere(following is None)
            if any(ended) and batch is None:
                raise TeacherSearchError(
                    f"the stream gives {sum(ended)} of {len(ended)} processes no batch; take fewer processes, smaller "
                    "batches or more shards."
                )
            if all(ended):
                return
            batch = _empty(batch) if following is None else following
            yield batch


def _everywhere(here: bool) -> list[bool]:
    """Whether something is so, on each process; a collective."""
    if not torch.distributed.is_initialized():
        return [here]
    answers = [here] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(answers, here)
    return answers


def _empty(batch: Any) -> Any:
    """A batch of the same kind without rows."""
    return apply_to_collection(batch, Tensor, lambda values: values[:0])


def check_all_read(trainer: Trainer, loader: Any, batches: float, training: bool = False) -> None:
    """Refuse a stream of which rows would be left out; collectives that every process must reach.

    Args:
        trainer: knows the processes.
        loader: of the rows.
        batches: how many of its batches the trainer takes.
        training: whether processes take its batches together.

    Raises:
        TeacherSearchError: naming the fault and its cure.
    """
    if training and trainer.world_size > 1 and is_stream(loader) and not isinstance(loader, EvenBatches):
        raise TeacherSearchError(
            "processes would wait for each other in vain where a stream gives one of them more batches: wrap the "
            "training stream, trainer.fit(search, certvae.teachers.search.EvenBatches(train), val)."
        )
    found = {"dropped": drops_rows(loader), "long": goes_on(loader, batches)}
    for name, here in found.items():
        if trainer.strategy.reduce_boolean_decision(here, all=False):
            raise TeacherSearchError(f"the search must see all rows: {FAULTS[name]}.")


def check_read_once(trainer: Trainer, rows: CountedRows | None, device: torch.device) -> None:
    """Refuse rows that were read more than once; collectives.

    Args:
        trainer: knows the processes.
        rows: those of this process; None if a sampler deals them out.
        device: of the collectives.

    Raises:
        TeacherSearchError: if there are any.
    """
    if trainer.strategy.reduce_boolean_decision(rows is not None, all=False):
        found = (rows or CountedRows()).gather(trainer, device)
        if found:
            raise TeacherSearchError(f"the search must see each row once. {found.removeprefix(READ_TWICE)}.")
