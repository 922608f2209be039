"""What a run's pictures and summaries need of its certificates, kept in checkpoints."""

from collections import Counter
from typing import Any, NamedTuple

from certvae.certificate.certificate import Certificate, Status

__all__ = ["Curve", "CurvePoint"]


class CurvePoint(NamedTuple):
    """One validation of a fit; values in nats.

    Attributes:
        epoch: in which it was made.
        status: the verdict, as text.
        teacher_information: the threshold.
        alignment_loss: certified where it is below the threshold by more than the safety margin.
        margin_lower: lower bound of their difference.
        margin: threshold less alignment loss, as the certificate states it.
        reading: of the code, as text.
    """

    epoch: int
    status: str
    teacher_information: float
    alignment_loss: float
    margin_lower: float
    margin: float
    reading: str = "UNDECIDED"

    @property
    def certified(self) -> bool:
        """Whether the status is ``CERTIFIED``."""
        return self.status == Status.CERTIFIED


class Curve:
    """The validations of a fit in their order.

    Args:
        safety_margin: nats by which the lower bound must exceed zero.

    Attributes:
        points: one for each validation.
    """

    def __init__(self, safety_margin: float) -> None:
        self.safety_margin = safety_margin
        self.points: list[CurvePoint] = []

    def add(self, certificate: Certificate, epoch: int) -> None:
        """Append a validation; a run that started anew replaces what it takes again."""
        while self.points and self.points[-1].epoch > epoch:
            self.points.pop()
        c = certificate
        values = (c.teacher_information, c.alignment_loss, c.margin_lower, c.margin)
        self.points.append(CurvePoint(epoch, str(c.status), *values, str(c.reading)))

    @property
    def best(self) -> CurvePoint | None:
        """The first with the highest lower bound among those of a complete set and a sound witness."""
        sound = [point for point in self.points if point.status not in (Status.PARTIAL, Status.LEAKING)]
        return max(sound, key=lambda point: (point.margin_lower, point.margin), default=None)

    @property
    def first_certified_epoch(self) -> int | None:
        """Epoch of the first that is certified."""
        return next((point.epoch for point in self.points if point.certified), None)

    @property
    def lost(self) -> bool:
        """Whether the last is not certified and the one before is."""
        return len(self.points) > 1 and self.points[-2].certified and not self.points[-1].certified

    def positions(self) -> list[float]:
        """Where each stands on an axis of epochs: of several in one epoch, the last stands at its number."""
        total, seen, places = Counter(point.epoch for point in self.points), Counter[int](), []
        for point in self.points:
            seen[point.epoch] += 1
            places.append(point.epoch - 1 + seen[point.epoch] / total[point.epoch])
        return places

    def state(self) -> list[list[Any]]:
        """Plain values for a checkpoint."""
        return [list(point) for point in self.points]

    def restore(self, state: list[list[Any]]) -> None:
        """Take over what :meth:`state` gave."""
        # A state of version 0.1 has no margin.
        self.points = [CurvePoint(*values[:5], *(values[5:] or [values[2] - values[3]])) for values in state]
