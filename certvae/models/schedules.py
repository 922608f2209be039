"""Weights that change during training, as functions of the epochs that are done."""

import math
from abc import ABC, abstractmethod

__all__ = ["CyclicalSchedule", "LinearSchedule", "Schedule", "value_at"]


class Schedule(ABC):
    """A number, at least 0, for every moment of a training."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """The value after ``progress`` epochs, a fraction of one included; infinity asks for the last value."""


class LinearSchedule(Schedule):
    """From ``first`` to ``last`` in a straight line, then constant: KL annealing, warm-up, a growing capacity.

    Sources: Bowman et al., 2016, https://arxiv.org/abs/1511.06349; 0.1 to 1 over 10 epochs is He et al., 2019.

    Args:
        first: value at the start, at least 0.
        last: value after ``epochs``, at least 0.
        epochs: length of the line, positive; need not be whole.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, first: float = 0.1, last: float = 1.0, epochs: float = 10.0) -> None:
        _check(first, last, epochs)
        self.first, self.last, self.epochs = first, last, epochs

    def __call__(self, progress: float) -> float:
        return self.first + (self.last - self.first) * min(1.0, progress / self.epochs)


class CyclicalSchedule(Schedule):
    """Several times from ``first`` to ``last``: each cycle rises in a straight line, then stays; so does the end.

    Source: Fu et al., 2019, https://arxiv.org/abs/1903.10145, section 3.2.

    Args:
        epochs: length of all cycles together, positive; need not be whole.
        cycles: how many, at least 1.
        rising: share of a cycle that rises, in ``(0, 1]``.
        first: value at the start of a cycle, at least 0.
        last: value at its end, at least 0.

    Raises:
        ValueError: if an argument is out of its range.
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
