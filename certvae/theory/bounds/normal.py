"""The asymptotic bound."""

import math
from statistics import NormalDist

from certvae.theory.bounds.base import Bound, Evidence, check_numbers, register

__all__ = ["Normal", "normal_bound"]


def normal_bound(margin: float, deviation: float, size: float, alpha: float) -> float:
    r"""Asymptotic bound :math:`\hat M - z_{1-\alpha}\, sd(\hat g) / \sqrt n`.

    Assumes independent rows and a large ``n``. Delta method: :math:`g_i - M` is the influence function of the
    plug-in margin, because the derivative of :math:`H(\bar T)` in the direction of a row is
    :math:`-\sum_k (T_{ik} - \bar T_k) \log \bar T_k` (van der Vaart, 1998, *Asymptotic Statistics*, chapter 20).
    Not rigorous at finite ``n``. If errors are rare and large (a witness that is confidently wrong on 1 % of the rows),
    a sample without such a row gives a bound above the margin. A witness floor limits the size of these errors.

    Args:
        margin: plug-in margin, nats.
        deviation: sample standard deviation of :math:`\hat g_i`, nats.
        size: number of rows ``n``.
        alpha: allowed error probability.

    Returns:
        Lower bound in nats, at most the margin: a confidence below one half is treated as one half. Minus infinity
        for fewer than two rows.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if ``alpha`` is not in (0, 1), ``size`` is below 1, ``deviation`` is below 0, or a number is
            above 1e100.
    """
    margin, alpha, size, deviation = check_numbers(margin, alpha, size, deviation=deviation)
    if size < 2:
        return -math.inf
    quantile = max(0.0, -NormalDist().inv_cdf(alpha))  # not inv_cdf(1 - alpha): it rounds to 1 for a tiny alpha
    return margin - quantile * deviation / math.sqrt(size)


@register
class Normal(Bound):
    """:func:`normal_bound`."""

    name = "normal"
    min_rows = 2
    sentence = (
        "The confidence of the method 'normal' is approximate: it is off where errors are rare and gross, and with "
        "fewer than 1,000 rows. 'betting', 'bernstein' and 'hoeffding' are proven, and wider."
    )

    confidence_text = "at about {} confidence"

    def lower(self, evidence: Evidence, alpha: float) -> float:
        return normal_bound(evidence.margin, evidence.deviation, evidence.size, alpha)
