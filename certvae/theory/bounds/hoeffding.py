"""The rigorous bound that uses only the range of the scores."""

import math

from certvae.theory.bounds.base import PROVEN, Bound, Claim, Evidence, check_numbers, register

__all__ = ["Hoeffding", "hoeffding_bound"]


def hoeffding_bound(margin: float, score_range: float, size: float, alpha: float) -> float:
    r"""Rigorous bound :math:`\hat M - R \sqrt{\log(1/\alpha) / 2n}`, valid at every ``n``.

    Assumes independent rows and floors that keep :math:`g_i` in an interval of width ``R``. Proof: Gibbs' step,
    then Hoeffding, 1963, theorem 2, for the mean of :math:`g_i`.

    Args:
        margin: plug-in margin, nats.
        score_range: ``R`` in nats, see :func:`score_range`.
        size: number of rows ``n``.
        alpha: allowed error probability.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if ``alpha`` is not in (0, 1), ``size`` is below 1, ``score_range`` is below 0, or a number is
            above 1e100.
    """
    margin, alpha, size, score_range = check_numbers(margin, alpha, size, score_range=score_range)
    return margin - score_range * math.sqrt(-math.log(alpha) / (2 * size))


@register
class Hoeffding(Bound):
    """:func:`hoeffding_bound`."""

    name = "hoeffding"
    rigorous = True
    default_witness_floor = 1e-3
    sentence = PROVEN

    def lower(self, evidence: Evidence, alpha: float) -> float:
        return hoeffding_bound(evidence.margin, evidence.score_range, evidence.size, alpha)

    def claims(self, evidence: Evidence, alpha: float, lower: float) -> list[Claim]:
        expected = self.lower(evidence, alpha)
        same = abs(lower - expected) <= 1e-9 * (1 + abs(expected))
        return [*super().claims(evidence, alpha, lower), ("margin_lower is Hoeffding's bound", same)]
