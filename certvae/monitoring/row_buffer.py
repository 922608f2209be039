"""Rows that wait until there are enough of them: a small batch costs as much as a large one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from certvae.reading.captured import Captured

__all__ = ["RowBlock", "RowBuffer"]

MOST = 2**19  # numbers that wait


@dataclass(frozen=True, eq=False)
class RowBlock:
    """What is counted of B rows.

    Attributes:
        code: finite or not.
        teacher_probs: shape ``(B, K)``.
        positions: of the rows in their set, shape ``(B,)``.
        weights: what each row counts, shape ``(B,)``.
    """

    code: Captured
    teacher_probs: Tensor
    positions: Tensor
    weights: Tensor

    @property
    def parts(self) -> tuple[Tensor | None, ...]:
        """All tensors, in one order."""
        return (*self.code, self.teacher_probs, self.positions, self.weights)

    @property
    def layout(self) -> list[object]:
        """What two blocks must have in common, to be joined."""
        kinds = [None if part is None else (part.shape[1:], part.dtype, part.device) for part in self.parts]
        return [self.code.deterministic, *kinds]


class RowBuffer:
    """Copies of rows, for a later batch may overwrite what a module gave.

    Args:
        numbers: that a row takes elsewhere, beside its code.
    """

    def __init__(self, numbers: int) -> None:
        self._numbers, self._waiting = numbers, list[RowBlock]()

    @property
    def full(self) -> bool:
        """Whether enough rows wait."""
        rows = sum(len(block.positions) for block in self._waiting)
        return rows > 0 and rows * (self._numbers + self._waiting[0].code.mean.shape[1]) >= MOST

    def takes(self, block: RowBlock) -> bool:
        """Whether a block can be joined to those that wait."""
        return not self._waiting or self._waiting[0].layout == block.layout

    def add(self, block: RowBlock) -> None:
        """Keep a block."""
        self._waiting.append(_block([part if part is None else part.clone() for part in block.parts], block))

    def take(self) -> RowBlock | None:
        """All that wait, as one block; None if there are none."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return None
        columns: Any = zip(*(block.parts for block in waiting), strict=True)
        return _block([parts[0] if parts[0] is None else torch.cat(parts) for parts in columns], waiting[0])


def _block(parts: Sequence[Any], like: RowBlock) -> RowBlock:
    mean, log_variance, rate, teacher_probs, positions, weights = parts
    code = Captured(mean, log_variance, rate, like.code.deterministic)
    return RowBlock(code, teacher_probs, positions, weights)
