"""Checked rows with their scores, the input of sums and bounds."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from certvae.theory.arguments import MAX_MAGNITUDE, MAX_NATS, as_float64, as_fraction, as_tensor
from certvae.theory.information import as_logits, as_probabilities, floor_log_probabilities, rows_of_a_block

__all__ = ["SCORES", "OrderedRows", "ScoredRows", "as_weights"]

SCORES = ("mean", "channel", "calibrated")


@dataclass(frozen=True)
class ScoredRows:
    """Checked rows with their scores; all tensors are float64 on one device.

    Attributes:
        teacher: probabilities, shape ``(N, K)``.
        log_witness: log-probabilities of the floored witness on the mean path, shape ``(N, K)``.
        weights: at least 0, shape ``(N,)``.
        scores: ``sum_k T_k log S_k`` of each row in nats, shape ``(N,)``, by name: ``"mean"`` always; ``"channel"`` and
            ``"calibrated"``, averaged over draws, if given.
        rate: of each row in nats, shape ``(N,)``, or None.
    """

    teacher: Tensor
    log_witness: Tensor
    weights: Tensor
    scores: dict[str, Tensor]
    rate: Tensor | None

    @classmethod
    def check(
        cls,
        teacher_probs: Any,
        witness_logits: Any,
        weights: Any = None,
        *,
        channel_logits: Any = None,
        calibrated_logits: Any = None,
        rate: Any = None,
        witness_floor: float = 0.0,
        teacher_floor: float = 0.0,
    ) -> "ScoredRows":
        """Check arrays and score every row.

        Args:
            teacher_probs: shape ``(N, K)``.
            witness_logits: the witness on the mean path, shape ``(N, K)``.
            weights: weight of each row, from 0 to 1e50, shape ``(N,)``; 0 leaves a row out. Default: all 1.
            channel_logits: the witness on draws of the latent, shape ``(draws, N, K)``.
            calibrated_logits: the calibrated witness on draws of the latent, shape ``(draws, N, K)``.
            rate: ``KL(q(z|x) || p(z))`` of each row in nats, at most 1e9 in size, shape ``(N,)``.
            witness_floor: share of the uniform distribution mixed into every witness.
            teacher_floor: every teacher probability must be at least ``teacher_floor / K``. This is checked; the floor
                is not mixed in.

        Raises:
            TypeError: if an array does not hold real numbers, or a floor is not a number.
            ValueError: if shapes do not match, or a value is out of range.
        """
        as_fraction(witness_floor, "witness_floor")
        as_fraction(teacher_floor, "teacher_floor")
        teacher = as_probabilities(teacher_probs)
        _check_floor(teacher, teacher_floor)
        log_witness, score = _scored(witness_logits, teacher, "witness_logits", witness_floor)
        scores = {"mean": score}
        for name, logits in (("channel", channel_logits), ("calibrated", calibrated_logits)):
            if logits is not None:
                scores[name] = _draw_average(logits, teacher, f"{name}_logits", witness_floor)
        rates = None if rate is None else _per_row(rate, teacher, "rate")
        return cls(teacher, log_witness, as_weights(weights, teacher), scores, rates)

    def split(self, size: int) -> list["ScoredRows"]:
        """Blocks of at most ``size`` rows, in their order; views, not copies."""
        if len(self.teacher) <= size:
            return [self]
        cut = partial(torch.split, split_size_or_sections=size)
        scores = [
            dict(zip(self.scores, part, strict=True)) for part in zip(*map(cut, self.scores.values()), strict=True)
        ]
        rates = [None] * len(scores) if self.rate is None else cut(self.rate)
        columns = (cut(self.teacher), cut(self.log_witness), cut(self.weights))
        return [ScoredRows(*block) for block in zip(*columns, scores, rates, strict=True)]

    def counted(self) -> "OrderedRows":
        """The rows with positive weight, in their order."""
        kept = self.weights > 0
        if bool(kept.all()):
            return OrderedRows(self.teacher, self.scores)
        return OrderedRows(self.teacher[kept], {name: score[kept] for name, score in self.scores.items()})

    def pack(self, positions: Tensor) -> Tensor:
        """Pack the rows with positive weight and their positions, for :meth:`OrderedRows.unpack`.

        Args:
            positions: of the rows in the data set, integers, shape ``(N,)``.

        Returns:
            float64, shape ``(n, K + 4)``.
        """
        absent = torch.full_like(self.weights, torch.nan)
        columns = [positions.to(absent), *(self.scores.get(name, absent) for name in SCORES)]
        return torch.cat([torch.stack(columns, dim=1), self.teacher], dim=1)[self.weights > 0]


@dataclass(frozen=True)
class OrderedRows:
    """Rows in the order of the data set, for bounds that need the rows themselves.

    Attributes:
        teacher: probabilities, float64, shape ``(n, K)``.
        scores: as in :class:`ScoredRows`.
    """

    teacher: Tensor
    scores: dict[str, Tensor]

    @classmethod
    def unpack(cls, packed: Tensor) -> "OrderedRows":
        """Sort the concatenated outputs of :meth:`ScoredRows.pack`, from all batches and processes, by position."""
        rows = packed[packed[:, 0].argsort(stable=True)]
        scores = {name: rows[:, 1 + place] for place, name in enumerate(SCORES)}
        return cls(
            rows[:, 1 + len(SCORES) :], {name: score for name, score in scores.items() if not score.isnan().any()}
        )


def _check_floor(teacher: Tensor, floor: float) -> None:
    least = float(floor) / teacher.shape[1]
    if floor and teacher.numel() and float(teacher.min()) < least * (1 - 1e-5):
        raise ValueError(
            f"`teacher_floor={floor}` promises probabilities of at least {least:.3g}, got "
            f"{teacher.min():.3g}. Mix the teacher with the uniform distribution: (1 - floor) * T + floor / K."
        )


def _same_shape(logits: Any, teacher: Tensor, name: str) -> Tensor:
    log_probs = as_logits(logits, name).to(teacher.device)
    if log_probs.shape != teacher.shape:
        raise ValueError(
            f"`{name}` must have the shape of `teacher_probs`, {tuple(teacher.shape)}, got "
            f"{tuple(log_probs.shape)}. Teacher and witness must have the same rows and components."
        )
    return log_probs


def _scored(logits: Any, teacher: Tensor, name: str, floor: float) -> tuple[Tensor, Tensor]:
    """Floored log-probabilities, shape ``(N, K)``, and each row's score, shape ``(N,)``."""
    log_witness, size = _same_shape(logits, teacher, name), rows_of_a_block(teacher)
    scores = []
    for block, target in zip(log_witness.split(size), teacher.split(size), strict=True):
        if floor:
            block.copy_(floor_log_probabilities(block, floor))  # no caller has this tensor
        scores.append((target * block).sum(dim=1))
    return log_witness, torch.cat(scores)


def _draw_average(logits: Any, teacher: Tensor, name: str, floor: float) -> Tensor:
    draws = as_tensor(logits, name)
    if draws.ndim != 3 or draws.shape[0] == 0:
        raise ValueError(f"`{name}` must have shape (draws, N, K), got {tuple(draws.shape)}.")
    return torch.stack([_scored(draw, teacher, name, floor)[1] for draw in draws]).mean(dim=0)


def _per_row(values: Any, teacher: Tensor, name: str) -> Tensor:
    rows = as_float64(as_tensor(values, name)).to(teacher.device)
    if rows.shape != teacher.shape[:1]:
        raise ValueError(f"`{name}` must have shape ({teacher.shape[0]},), got {tuple(rows.shape)}.")
    most = MAX_MAGNITUDE if name == "weights" else MAX_NATS
    faulty = ~(rows.abs() <= most)
    if bool(faulty.any()):
        raise ValueError(f"`{name}` must be finite and at most {most:g} in size, got {rows[faulty][0].item()}.")
    return rows


def as_weights(weights: Any, teacher: Tensor) -> Tensor:
    """Checked weights of the rows of ``teacher``, float64, shape ``(N,)``; all 1 for None.

    Raises:
        TypeError: if they are not numbers.
        ValueError: if the shape is not ``(N,)``, or a weight is not from 0 to 1e50.
    """
    if weights is None:
        return torch.ones(teacher.shape[0], dtype=torch.float64, device=teacher.device)
    rows = _per_row(weights, teacher, "weights")
    if bool((rows < 0).any()):
        raise ValueError(f"`weights` must be non-negative, got {rows.min().item()}.")
    return rows
