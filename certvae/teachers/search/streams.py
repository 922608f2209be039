"""Checks for a search over a stream: equally many batches on each process, and every row exactly once."""

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
    """The batches of a stream, followed by empty ones until the streams of all processes have ended.

    Training processes wait for each other at every batch. If one process had more batches, the search would hang in
    Lightning. The wrapped stream has no length and is read to its end.

    Args:
        loader: dataloader of the training rows; every process must get at least one batch.

    Raises:
        TeacherSearchError: during iteration, if a process gets no batch.
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
    """The values of ``here`` on all processes; a collective."""
    if not torch.distributed.is_initialized():
        return [here]
    answers = [here] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(answers, here)
    return answers


def _empty(batch: Any) -> Any:
    """A batch of the same structure without rows."""
    return apply_to_collection(batch, Tensor, lambda values: values[:0])


def check_all_read(trainer: Trainer, loader: Any, batches: float, training: bool = False) -> None:
    """Reject a stream that would leave out rows; runs collectives, which every process must reach.

    Args:
        trainer: gives the processes.
        loader: dataloader of the rows.
        batches: number of its batches that the trainer reads.
        training: whether processes wait for each other at each batch.

    Raises:
        TeacherSearchError: if it would. The message names the fault and the remedy.
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
    """Reject rows that were read more than once; runs collectives.

    Args:
        trainer: gives the processes.
        rows: the rows counted on this process; None if a sampler splits the rows.
        device: device of the collectives.

    Raises:
        TeacherSearchError: if there are any.
    """

    if trainer.strategy.reduce_boolean_decision(rows is not None, all=False):
        found = (rows or CountedRows()).gather(trainer, device)
        if found:
            raise TeacherSearchError(f"the search must see each row once. {found.removeprefix(READ_TWICE)}.")
