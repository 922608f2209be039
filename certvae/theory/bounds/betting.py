"""The rigorous bound that is nearly as narrow as the normal one; see :mod:`certvae.theory.betting`."""

import math

from certvae.theory.betting import betting
from certvae.theory.bounds.base import PROVEN, Bound, Claim, Evidence, log_range, register

__all__ = ["Betting"]


@register
class Betting(Bound):
    """:func:`certvae.theory.betting.betting` as a bound; it needs the rows in the order of the data set."""

    name = "betting"
    rigorous = True
    needs_rows = True
    fallback = "bernstein"
    default_witness_floor = 1e-3
    sentence = PROVEN

    def lower(self, evidence: Evidence, alpha: float) -> float:
        assert evidence.teacher_probs is not None
        assert evidence.scores is not None
        floors = {"teacher_floor": evidence.teacher_floor, "witness_floor": evidence.witness_floor}
        lower = betting(evidence.teacher_probs.cpu(), evidence.scores.cpu(), alpha, **floors)
        return lower if lower > _lowest(evidence) + 1e-9 else -math.inf

    def claims(self, evidence: Evidence, alpha: float, lower: float) -> list[Claim]:
        possible = lower == -math.inf or lower > _lowest(evidence)
        return [*super().claims(evidence, alpha, lower), ("margin_lower is above the lowest score", possible)]


def _lowest(evidence: Evidence) -> float:
    return -log_range(evidence.num_components, evidence.witness_floor, "witness_floor")
