r"""Confidence bounds on the expectation of a self-bounding function of independent rows.

Let :math:`f \ge 0` be a function of n rows and :math:`f_i` functions of all rows but row i, with
:math:`0 \le f - f_i \le c` and :math:`\sum_i (f - f_i) \le a f` for :math:`a \ge 1`. Then :math:`f / c` is
self-bounding.
"""

import math

__all__ = ["information_growth", "information_step", "lower_bound_of_expectation", "upper_bound_of_expectation"]


def information_step(rows: int) -> float:
    r"""The most that one row can add to :math:`f = n I(J; k)`, in nats, where J is the index of one of n rows.

    .. math:: c = n\,h(1/n) = \log n + (n - 1) \log \frac{n}{n - 1}, \qquad h(p) = -p \log p - (1-p) \log (1-p)

    Proof in docs/information.md.

    Args:
        rows: n, from 2.
    """
    return math.log(rows) + (rows - 1) * math.log(rows / (rows - 1))


def information_growth(rows: int) -> float:
    r"""The factor a in :math:`\sum_i (f - f_i) \le a f` for :math:`f = n I(J; k)`; see :func:`information_step`.

    .. math:: a = 1 + \frac{1 - 1/n}{\log n - 1 + 1/n}

    Proof in docs/information.md.

    Args:
        rows: n, from 2.
    """
    return 1 + (1 - 1 / rows) / (math.log(rows) - 1 + 1 / rows)


def lower_bound_of_expectation(value: float, step: float, growth: float, rows: int, error: float) -> float:
    r"""Lower confidence bound on :math:`E f`; it is too high with probability at most ``error``.

    Takes the better of two bounds. Both bound the same tail of one number, so the better one is valid. Sources:
    McDiarmid, 1989; Boucheron, Lugosi and Massart, 2009, *On concentration of self-bounding functions*, theorem 1;
    the proof is in docs/information.md.

    Args:
        value: f, at least 0.
        step: c, above 0.
        growth: a, at least 1.
        rows: n.
        error: error probability, in (0, 1).
    """
    scaled, need = value / step, -math.log(error)
    spread = need * (3 * growth + 1) / 6
    bernstein = math.sqrt(spread**2 + 2 * need * growth * scaled) - spread
    return value - step * min(bernstein, math.sqrt(rows * need / 2))


def upper_bound_of_expectation(value: float, step: float, growth: float, rows: int, error: float) -> float:
    r"""Upper confidence bound on :math:`E f`; it is too low with probability at most ``error``.

    Takes the better of two bounds. One solves :math:`P(f / c \le E f / c - t) \le \exp(-t^2 / (2 a E f / c))` for
    :math:`E f`. Sources: McDiarmid, 1989; Maurer, 2006, *Concentration inequalities for functions of independent
    variables*, theorem 13, as in Maurer and Pontil, 2009, https://arxiv.org/abs/0907.3740, theorem 7.

    Args:
        value: f, at least 0.
        step: c, above 0.
        growth: a, at least 1.
        rows: n.
        error: error probability, in (0, 1).
    """
    scaled, need = value / step, -math.log(error)
    spread = growth * need
    bernstein = spread + math.sqrt(spread**2 + 2 * spread * scaled)
    return value + step * min(bernstein, math.sqrt(rows * need / 2))
