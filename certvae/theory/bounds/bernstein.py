"""The rigorous bound that adapts to the variance of the scores."""

import math
from dataclasses import replace

from certvae.theory.bounds.base import PROVEN, Bound, Claim, Evidence, check_numbers, log_range, register

__all__ = ["Bernstein", "bernstein_bound"]


def bernstein_bound(
    margin: float, deviation: float, score_range: float, teacher_log_range: float, size: float, alpha: float
) -> float:
    r"""Rigorous, variance-adaptive bound, valid at every ``n``.

    .. math::
        M \ge \hat M - \hat\sigma \sqrt{\frac{2 L}{n}} - \frac{7 R L}{3 (n - 1)} - \frac{L}{2 c_B (n - 1)},
        \qquad L = \log \frac2\alpha, \quad c_B = \frac{B - 1 + e^{-B}}{B^2}, \quad B = \log \frac{K}{\epsilon_T},

    where :math:`\hat\sigma` is the sample standard deviation (``n - 1``) of the *plug-in* scores
    :math:`\hat g_i = a_i - \sum_k T_{ik} \log \hat T_k`.

    Proof. (1) Maurer and Pontil, 2009, theorem 4 (https://arxiv.org/abs/0907.3740), for the independent
    :math:`g_i` in an interval of width ``R``: with probability at least :math:`1 - \alpha`,
    :math:`M \ge \frac1n \sum g_i - \sigma \sqrt{2L/n} - 7RL / 3(n-1)`, where :math:`\sigma` is the sample
    deviation of :math:`g_i`. It is not computable, since :math:`\bar T` is unknown.
    (2) Let :math:`d_k = \log(\hat T_k / \bar T_k)`. Then :math:`g_i = \hat g_i + T_i \cdot d`, so
    :math:`\sigma \le \hat\sigma + sd(T_i \cdot d)`, and by Jensen's inequality
    :math:`sd(T_i \cdot d)^2 \le \frac{1}{n-1} \sum_i \sum_k T_{ik} d_k^2 = \frac{n}{n-1} s^2` with
    :math:`s^2 = \sum_k \hat T_k d_k^2`.
    (3) :math:`KL(\hat T \| \bar T) = \sum_k \hat T_k (d_k - 1 + e^{-d_k}) \ge c_B s^2`, because
    :math:`(d - 1 + e^{-d}) / d^2` decreases in ``d`` and :math:`d_k \le B`.
    (4) By Gibbs' step :math:`\frac1n \sum g_i = \hat M + KL(\hat T \| \bar T)`. Together

    .. math:: M \ge \hat M - \hat\sigma \sqrt{2L/n} - \frac{7RL}{3(n-1)} + c_B s^2 - s \sqrt{2L/(n-1)},

    and the last two terms are at least :math:`-L / (2 c_B (n-1))` for every ``s``. So the slack of Gibbs' step
    compensates for the unknown variance. No further event is needed, and no union bound.

    Args:
        margin: plug-in margin, nats.
        deviation: sample standard deviation of :math:`\hat g_i`, nats.
        score_range: ``R`` in nats, see :func:`score_range`.
        teacher_log_range: ``B`` in nats, at least ``log 2``.
        size: number of rows ``n``.
        alpha: allowed error probability.

    Returns:
        Lower bound in nats; minus infinity for fewer than two rows.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if ``alpha`` is not in (0, 1), ``size`` is below 1, a deviation or range is below 0, or a
            number is above 1e100.
    """
    margin, alpha, size, deviation, score_range, teacher_log_range = check_numbers(
        margin, alpha, size, deviation=deviation, score_range=score_range, teacher_log_range=teacher_log_range
    )
    if size < 2:
        return -math.inf
    if teacher_log_range < math.log(2):
        raise ValueError(f"`teacher_log_range` must be at least log 2, that of 2 components, got {teacher_log_range}.")
    log_term = math.log(2) - math.log(alpha)
    curvature = (teacher_log_range - 1 + math.exp(-teacher_log_range)) / teacher_log_range**2
    known = deviation * math.sqrt(2 * log_term / size) + 7 * score_range * log_term / (3 * (size - 1))
    return margin - known - log_term / (2 * curvature * (size - 1))


@register
class Bernstein(Bound):
    """:func:`bernstein_bound`."""

    name = "bernstein"
    rigorous = True
    min_rows = 2
    default_witness_floor = 1e-3
    sentence = PROVEN

    def lower(self, evidence: Evidence, alpha: float) -> float:
        reach = log_range(evidence.num_components, evidence.teacher_floor, "teacher_floor")
        return bernstein_bound(evidence.margin, evidence.deviation, evidence.score_range, reach, evidence.size, alpha)

    def claims(self, evidence: Evidence, alpha: float, lower: float) -> list[Claim]:
        best = self.lower(replace(evidence, deviation=0.0), alpha)
        claim = ("margin_lower is at most Bernstein's bound at variance 0", lower <= best + 1e-9)
        return [*super().claims(evidence, alpha, lower), claim]
