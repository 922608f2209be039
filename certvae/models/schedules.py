"""Weights that change during training, as functions of the number of finished epochs."""

import math
from abc import ABC, abstractmethod

__all__ = ["CyclicalSchedule", "LinearSchedule", "Schedule", "value_at"]


class Schedule(ABC):
    """A number of at least 0 that depends on the training progress."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """The value after ``progress`` epochs, which may be a fraction; infinity gives the last value."""


class LinearSchedule(Schedule):
    """Linear from ``first`` to ``last``, then constant: for KL annealing, warm-up or a growing capacity.

    Sources: Bowman et al., 2016, https://arxiv.org/abs/1511.06349; 0.1 to 1 over 10 epochs is He et al., 2019.

    Args:
        first: value at the start, at least 0.
        last: value after ``epochs``, at least 0.
        epochs: length of the linear part, positive; may be a fraction.

    Raises:
        ValueError: if ``first`` or ``last`` is negative, or ``epochs`` is not positive.
    """

    def __init__(self, first: float = 0.1, last: float = 1.0, epochs: float = 10.0) -> None:
        _check(first, last, epochs)
        self.first, self.last, self.epochs = first, last, epochs

    def __call__(self, progress: float) -> float:
        return self.first + (self.last - self.first) * min(1.0, progress / self.epochs)


class CyclicalSchedule(Schedule):
    """Cycles that rise linearly from ``first`` to ``last`` and then stay there; the last value is kept at the end.

    Source: Fu et al., 2019, https://arxiv.org/abs/1903.10145, section 3.2.

    Args:
        epochs: length of all cycles together, positive; may be a fraction.
        cycles: how many, at least 1.
        rising: share of each cycle in which the value rises, in ``(0, 1]``.
        first: value at the start of a cycle, at least 0.
        last: value at its end, at least 0.

    Raises:
        ValueError: if ``first`` or ``last`` is negative, ``epochs`` is not positive, ``cycles`` is below 1, or
            ``rising`` is not in (0, 1].
    """

    def __init__(
        self, epochs: float, cycles: int = 4, rising: float = 0.5, first: float = 0.0, last: float = 1.0
    ) -> None:
        _check(first, last, epochs)
        if cycles < 1:
            raise ValueError(f"`cycles` must be at least 1, got {cycles}.")
        if not 0 < rising <= 1:
            raise ValueError(f"`rising` must be above 0 and at most 1, got {rising}.")
        self.epochs, self.cycles, self.rising, self.first, self.last = epochs, cycles, rising, first, last

    def __call__(self, progress: float) -> float:
        if progress >= self.epochs:
            return self.last
        position = progress * self.cycles / self.epochs % 1.0
        return self.first + (self.last - self.first) * min(1.0, position / self.rising)


def value_at(value: float | Schedule, progress: float) -> float:
    """The value of a number, or of a schedule after ``progress`` epochs."""
    return value(progress) if isinstance(value, Schedule) else value


def _check(first: float, last: float, epochs: float) -> None:
    for name, value in (("first", first), ("last", last)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"`{name}` must be at least 0, got {value}.")
    if not (math.isfinite(epochs) and epochs > 0):
        raise ValueError(f"`epochs` must be positive, got {epochs}.")
