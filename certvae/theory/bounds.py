r"""Lower confidence bounds on the margin of the population that the rows were drawn from.

Notation: rows :math:`i = 1..n` are independent draws; :math:`a_i = \sum_k T_{ik} \log S_{ik}`; :math:`\bar T` is
the population's average teacher and :math:`\hat T` the sample's. The population margin is

.. math:: M = E\, g_i, \qquad g_i = a_i - \sum_k T_{ik} \log \bar T_k .

The plug-in margin :math:`\hat M` uses :math:`\hat T`, which depends on every row, in place of :math:`\bar T`.

**Gibbs' step.** :math:`\hat M = \frac1n \sum_i g_i - KL(\hat T \| \bar T) \le \frac1n \sum_i g_i`, since
:math:`H(\hat T) = -\sum_k \hat T_k \log \bar T_k - KL(\hat T \| \bar T)`. So the plug-in margin never exceeds a mean
of independent variables with expectation :math:`M`, and bounds for such means hold for it, although the
threshold is estimated from the same rows.

Every bound assumes that teacher and witness were fixed before these rows were seen: a witness fitted on them, or chosen
among several on them, makes the :math:`g_i` dependent. The lower bounds of one certificate (mean path, channel,
calibrated channel) hold at the stated confidence each, not all at once.

All values are in nats; every bound needs the additive sums only.
"""

import math
from statistics import NormalDist
from typing import Literal, get_args

from certvae.theory.arguments import MAX_MAGNITUDE, as_fraction, as_number, as_whole_number

__all__ = [
    "METHODS",
    "RIGOROUS",
    "Method",
    "bernstein",
    "check_method",
    "hoeffding",
    "lower_bound",
    "normal",
    "plugin",
    "score_range",
    "spending",
]

Method = Literal["plugin", "normal", "hoeffding", "bernstein"]
METHODS: tuple[str, ...] = get_args(Method)
RIGOROUS = ("hoeffding", "bernstein")  # they need floors, and equal weights
_MAX_SQUARE = MAX_MAGNITUDE**2


def check_method(method: str, teacher_floor: float, witness_floor: float) -> None:
    """Reject an unknown method, or a rigorous one without the floors that bound the range.

    Raises:
        TypeError: if a floor is not a number.
        ValueError: naming the argument and what to give.
    """
    as_fraction(teacher_floor, "teacher_floor")
    as_fraction(witness_floor, "witness_floor")
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {method!r}.")
    if method in RIGOROUS and not (teacher_floor > 0 and witness_floor > 0):
        raise ValueError(
            f"`method={method!r}` needs bounded log-probabilities: `teacher_floor` and `witness_floor` must be "
            f"above 0, got {teacher_floor} and {witness_floor}. A searched teacher states its floor; for another "
            "one mix (1 - floor) * T + floor / K. `witness_floor` is applied for you."
        )


def score_range(num_components: int, teacher_floor: float, witness_floor: float) -> float:
    r"""Width of the interval that holds every :math:`g_i`, in nats.

    :math:`\log(\epsilon_S / K) \le g_i \le \log(K / \epsilon_T)`, as :math:`S_{ik} \ge \epsilon_S / K` and
    :math:`\bar T_k \ge \epsilon_T / K`.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if there are fewer than 2 components, or a floor is not in (0, 1).
    """
    return _log_range(num_components, teacher_floor, "teacher_floor") + _log_range(
        num_components, witness_floor, "witness_floor"
    )


def _log_range(num_components: int, floor: float, name: str) -> float:
    """``log(K / floor)``."""
    share = as_fraction(floor, name)
    if share == 0:
        raise ValueError(f"`{name}` must be above 0, or log-probabilities have no bound, got {floor}.")
    return math.log(as_whole_number(num_components, "num_components", 2)) - math.log(share)


def _numbers(margin: float, alpha: float, size: float, **spreads: float) -> tuple[float, ...]:
    """The arguments as floats, in this order; one out of its range is a TypeError or ValueError that names it."""
    if not abs(as_number(margin, "margin")) <= _MAX_SQUARE:
        raise ValueError(f"`margin` must be finite, got {margin}.")
    if not 0 < as_number(alpha, "alpha") < 1:
        raise ValueError(f"`alpha` must be between 0 and 1, got {alpha}.")
    if not 0 < as_number(size, "size") <= _MAX_SQUARE:
        raise ValueError(f"`size` must be positive and finite, got {size}.")
    for name, value in spreads.items():
        one_row = name == "deviation" and size < 2  # has none
        if not (0 <= as_number(value, name) <= _MAX_SQUARE or one_row):
            raise ValueError(f"`{name}` must be finite and at least 0, got {value}.")
    return tuple(float(value) for value in (margin, alpha, size, *spreads.values()))


def plugin(margin: float) -> float:
    """The margin itself: exact for these rows, with no statement about others.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is not finite.
    """
    return _numbers(margin, 0.5, 1)[0]


def normal(margin: float, deviation: float, size: float, alpha: float) -> float:
    r"""Asymptotic bound :math:`\hat M - z_{1-\alpha}\, sd(\hat g) / \sqrt n`.

    Assumes independent rows and a large ``n``. Delta method: :math:`g_i - M` is the influence function of the
    plug-in margin, because the derivative of :math:`H(\bar T)` in the direction of a row is
    :math:`-\sum_k (T_{ik} - \bar T_k) \log \bar T_k` (van der Vaart, 1998, *Asymptotic Statistics*, chapter 20).
    Not rigorous at finite ``n``: where errors are rare and gross (a witness that is confidently wrong on 1 % of the
    rows), a sample without such a row puts the bound above the margin. A witness floor limits how gross they are.

    Args:
        margin: plug-in margin.
        deviation: sample standard deviation of :math:`\hat g_i`.
        size: number of rows ``n``.
        alpha: allowed error probability.

    Returns:
        Lower bound in nats, at most the margin: a confidence below one half is taken as one half. Minus infinity for
        fewer than two rows.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if one is out of its range: ``alpha`` in (0, 1), ``size`` above 0, spreads at least 0, none
            above 1e100.
    """
    margin, alpha, size, deviation = _numbers(margin, alpha, size, deviation=deviation)
    if size < 2:
        return -math.inf
    quantile = max(0.0, -NormalDist().inv_cdf(alpha))  # not of 1 - alpha, which rounds to 1 for a tiny alpha
    return margin - quantile * deviation / math.sqrt(size)


def hoeffding(margin: float, score_range: float, size: float, alpha: float) -> float:
    r"""Rigorous bound :math:`\hat M - R \sqrt{\log(1/\alpha) / 2n}`, valid at every ``n``.

    Assumes independent rows and floors that keep :math:`g_i` in an interval of width ``R``. Proof: Gibbs' step,
    then Hoeffding, 1963, theorem 2, for the mean of :math:`g_i`.

    Args:
        margin: plug-in margin.
        score_range: ``R``, see :func:`score_range`.
        size: number of rows ``n``.
        alpha: allowed error probability.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if one is out of its range: ``alpha`` in (0, 1), ``size`` above 0, spreads at least 0, none
            above 1e100.
    """
    margin, alpha, size, score_range = _numbers(margin, alpha, size, score_range=score_range)
    return margin - score_range * math.sqrt(-math.log(alpha) / (2 * size))


def bernstein(
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

    and the last two terms are at least :math:`-L / (2 c_B (n-1))` for every ``s``. So the slack of Gibbs' step pays
    for not knowing the variance; no event is added, and no union bound is needed.

    Args:
        margin: plug-in margin.
        deviation: sample standard deviation of :math:`\hat g_i`.
        score_range: ``R``, see :func:`score_range`.
        teacher_log_range: ``B``, at least ``log 2``.
        size: number of rows ``n``.
        alpha: allowed error probability.

    Returns:
        Lower bound in nats; minus infinity for fewer than two rows.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if one is out of its range: ``alpha`` in (0, 1), ``size`` above 0, spreads at least 0, none
            above 1e100.
    """
    margin, alpha, size, deviation, score_range, teacher_log_range = _numbers(
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


def spending(alpha: float, look: int) -> float:
    r"""Error probability that look ``t`` may spend, :math:`\alpha_t = 6 \alpha / (\pi^2 t^2)`.

    Looking every epoch is repeated testing. The shares add up to :math:`\alpha` over all looks, however many, so by
    the union bound 'the lower bound held at every look', and hence 'certified at some epoch' where it was said, is
    true with probability at least :math:`1 - \alpha`. No independence of the looks is needed. But a look's rows must
    not have influenced the model, teacher or witness that it looks at: not by training, not through a guard or a
    learning-rate schedule that reads a validation number, not through a search that compared on them. Stopping, and
    picking a checkpoint, are allowed. Source: Basel's series; Robbins, 1970, for such mixtures.

    Args:
        alpha: error probability of the whole run, in (0, 1).
        look: number of the look, from 1.

    Raises:
        TypeError: if an argument is not a number, or ``look`` not a whole one.
        ValueError: if ``alpha`` is not in (0, 1), or ``look`` is below 1.
    """
    if not 0 < as_number(alpha, "alpha") < 1:
        raise ValueError(f"`alpha` must be between 0 and 1, got {alpha}.")
    as_whole_number(look, "look", 1)
    return 6 * float(alpha) / (math.pi * look) ** 2


def lower_bound(
    method: str,
    margin: float,
    deviation: float,
    size: float,
    alpha: float,
    *,
    num_components: int,
    teacher_floor: float = 0.0,
    witness_floor: float = 0.0,
) -> float:
    """The bound called ``method``, from the numbers that the additive sums give; see each function.

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if the method is unknown or lacks its floors, or a number is out of its range.
    """
    margin, alpha, size = _numbers(margin, alpha, size)
    as_whole_number(num_components, "num_components", 2)
    check_method(method, teacher_floor, witness_floor)
    if method == "plugin":
        return plugin(margin)
    if method == "normal":
        return normal(margin, deviation, size, alpha)
    width = score_range(num_components, teacher_floor, witness_floor)
    if method == "hoeffding":
        return hoeffding(margin, width, size, alpha)
    teacher_log_range = _log_range(num_components, teacher_floor, "teacher_floor")
    return bernstein(margin, deviation, width, teacher_log_range, size, alpha)
