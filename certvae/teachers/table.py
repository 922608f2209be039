"""Fixed targets: one row of probabilities for each index of a data set."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from certvae.reading.inputs import InputSource, index_of, select_inputs
from certvae.teachers.base import Teacher
from certvae.teachers.card import TeacherCard
from certvae.teachers.mixture import FLOATS
from certvae.theory.information import as_probabilities

__all__ = ["TargetTable"]


class TargetTable(Teacher):
    """A teacher that looks up its probabilities by the rows' index; the input is not used.

    Args:
        card: description of the targets; the fingerprint ties them to one data set.
        targets: probabilities, shape ``(N, K)``; rows without a target are NaN.
        average: mean target over training rows, shape ``(K,)``.

    Raises:
        ValueError: if a row is neither a distribution nor all NaN.
    """

    kind = "target_table"
    targets: Tensor

    def __init__(self, card: TeacherCard, targets: Tensor, average: Tensor | None = None) -> None:
        super().__init__(card, average)
        if targets.ndim != 2 or targets.shape[1] != card.num_components:
            raise ValueError(f"`targets` must have shape (N, {card.num_components}), got {tuple(targets.shape)}.")
        if targets.dtype not in FLOATS:
            raise ValueError(f"`targets` must hold floating-point values, got {targets.dtype}.")
        present = ~targets.isnan().all(dim=1)
        as_probabilities(targets[present], "targets")
        self.register_buffer("targets", targets.float())

    @classmethod
    @torch.no_grad()
    def from_teacher(cls, teacher: Teacher, loaders: Iterable[Iterable[Any]], images: InputSource = 0) -> "TargetTable":
        """Compute a teacher's probabilities for every row of some dataloaders.

        Args:
            teacher: the teacher; its card and average are copied.
            loaders: dataloaders of batches ``(images, label, index)``, or of batches with an entry ``index``.
            images: where the teacher's input is in a batch, as for the callbacks.

        Raises:
            ValueError: if a batch has no index, or two rows with different targets have the same index.
        """
        pieces = [_targets_of(teacher, batch, images) for loader in loaders for batch in loader]
        if not pieces:
            raise ValueError("`loaders` must hold at least one row, got none.")
        index = torch.cat([piece[0] for piece in pieces])
        targets = torch.full((int(index.max()) + 1, teacher.num_components), torch.nan)
        targets[index] = probs = torch.cat([piece[1] for piece in pieces])
        _check_index(index, targets[index], probs)
        return cls(replace(teacher.card), targets, teacher.average)

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        if index is None:
            raise ValueError("a target table needs the rows' index; give batches (images, label, index).")
        outside = (index < 0) | (index >= self.targets.shape[0])
        if bool(outside.any()):
            raise ValueError(f"index {int(index[outside][0])} has no target; the table has {len(self.targets)} rows.")
        rows = self.targets[index.to(self.targets.device)]
        if bool(rows.isnan().any()):
            missing = index.to(rows.device)[rows.isnan().any(dim=1)][0]
            raise ValueError(f"index {int(missing)} has no target; make the table from every split that is used.")
        return rows.to(images.device)

    def tensors(self) -> dict[str, Tensor]:
        return {"targets": self.targets}


def _targets_of(teacher: Teacher, batch: Any, images: InputSource) -> tuple[Tensor, Tensor]:
    index = index_of(batch)
    if index is None:
        raise ValueError(
            "`loaders` must give batches (images, label, index), or with whole numbers called 'index'; this batch has "
            "no index."
        )
    inputs = teacher.prepared(select_inputs(batch, images))
    probs, weights = teacher(inputs, index).float().cpu(), teacher.row_weights(inputs)
    counted = slice(None) if weights is None else weights.cpu() > 0  # a row without a label has no target
    return index.cpu()[counted], probs[counted]


def _check_index(index: Tensor, kept: Tensor, probs: Tensor) -> None:
    """Reject an index that is not unique. A label in its place would give many rows the same target."""
    other = ((kept - probs).abs() > 1e-4).any(dim=1)
    if bool(other.any()):
        raise ValueError(
            f"index {int(index[other][0])} stands for rows with different targets: each row of all `loaders` needs an "
            "index of its own. Is the third entry of the batch a label?"
        )
