"""The history of a run's certificates for plots and summaries, kept in checkpoints."""

from collections import Counter
from typing import Any, NamedTuple

from certvae.certificate.certificate import Certificate, Status

__all__ = ["Curve", "CurvePoint"]


class CurvePoint(NamedTuple):
    """One validation of a fit; values in nats.

    Attributes:
        epoch: epoch of the validation.
        status: the verdict, as text.
        teacher_information: the threshold.
        alignment_loss: cost of the raw witness on the mean path.
        margin_lower: lower bound on the margin.
        margin: teacher information less alignment loss, as stated by the certificate.
        reading: reading of the code, as text.
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
    """The validations of a fit, in order.

    Args:
        safety_margin: nats by which the lower bound must exceed zero.

    Attributes:
        points: one :class:`CurvePoint` for each validation.
    """

    def __init__(self, safety_margin: float) -> None:
        self.safety_margin = safety_margin
        self.points: list[CurvePoint] = []

    def add(self, certificate: Certificate, epoch: int) -> None:
        """Append a validation; a restarted run replaces the points that it repeats."""
        while self.points and self.points[-1].epoch > epoch:
            self.points.pop()
        c = certificate
        values = (c.teacher_information, c.alignment_loss, c.margin_lower, c.margin)
        self.points.append(CurvePoint(epoch, str(c.status), *values, str(c.reading)))

    @property
    def best(self) -> CurvePoint | None:
        """The point with the highest lower bound, first one on ties; ``PARTIAL`` and ``LEAKING`` do not count."""
        sound = [point for point in self.points if point.status not in (Status.PARTIAL, Status.LEAKING)]
        return max(sound, key=lambda point: (point.margin_lower, point.margin), default=None)

    @property
    def first_certified_epoch(self) -> int | None:
        """Epoch of the first certified point; None if there is none."""
        return next((point.epoch for point in self.points if point.certified), None)

    @property
    def lost(self) -> bool:
        """Whether the last point is not certified and the one before it is."""
        return len(self.points) > 1 and self.points[-2].certified and not self.points[-1].certified

    def positions(self) -> list[float]:
        """Positions on the epoch axis. Of several points in one epoch, the last is at the epoch's number."""
        total, seen, places = Counter(point.epoch for point in self.points), Counter[int](), []
        for point in self.points:
            seen[point.epoch] += 1
            places.append(point.epoch - 1 + seen[point.epoch] / total[point.epoch])
        return places

    def state(self) -> list[list[Any]]:
        """Plain values for a checkpoint."""
        return [list(point) for point in self.points]

    def restore(self, state: list[list[Any]]) -> None:
        """Restore the output of :meth:`state`."""
        # A state from version 0.1 has no margin.
        self.points = [CurvePoint(*values[:5], *(values[5:] or [values[2] - values[3]])) for values in state]
