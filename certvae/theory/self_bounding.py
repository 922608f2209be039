r"""Confidence bounds on the expectation of a function of independent rows to which no row adds much.

A function :math:`f \ge 0` of n rows, and functions :math:`f_i` of all rows but one, with :math:`0 \le f - f_i \le c`
and :math:`\sum_i (f - f_i) \le a f` for :math:`a \ge 1`. Then :math:`f / c` is self-bounding.
"""

import math

__all__ = ["information_growth", "information_step", "lower_bound_of_expectation", "upper_bound_of_expectation"]


def information_step(rows: int) -> float:
    r"""The most that one row adds to n times the information about which of n rows it was, in nats.

    .. math:: c = n\,h(1/n) = \log n + (n - 1) \log \frac{n}{n - 1}, \qquad h(p) = -p \log p - (1-p) \log (1-p)

    Proof in docs/information.md.

    Args:
        rows: n, from 2.
    """
    return math.log(rows) + (rows - 1) * math.log(rows / (rows - 1))


def information_growth(rows: int) -> float:
    r"""The most that all rows together add to it, as a multiple of itself.

    .. math:: a = 1 + \frac{1 - 1/n}{\log n - 1 + 1/n}

    Proof in docs/information.md.

    Args:
        rows: n, from 2.
    """
    return 1 + (1 - 1 / rows) / (math.log(rows) - 1 + 1 / rows)


def lower_bound_of_expectation(value: float, step: float, growth: float, rows: int, error: float) -> float:
    r"""A number that is above :math:`E f` with probability at most ``error``.

    Sources: McDiarmid, 1989; Boucheron, Lugosi and Massart, 2009, *On concentration of self-bounding functions*,
    theorem 1; the proof that is used stands in docs/information.md. The better of the two, which are bounds on one
    tail of one number.

    Args:
        value: f, from 0.
        step: c, above 0.
        growth: a, from 1.
        rows: n.
        error: probability, in (0, 1).
    """
    scaled, need = value / step, -math.log(error)
    spread = need * (3 * growth + 1) / 6
    bernstein = math.sqrt(spread**2 + 2 * need * growth * scaled) - spread
    return value - step * min(bernstein, math.sqrt(rows * need / 2))


def upper_bound_of_expectation(value: float, step: float, growth: float, rows: int, error: float) -> float:
    r"""A number that is below :math:`E f` with probability at most ``error``.

    Solves :math:`P(f / c \le E f / c - t) \le \exp(-t^2 / (2 a E f / c))` for :math:`E f`. Sources: McDiarmid, 1989;
    Maurer, 2006, *Concentration inequalities for functions of independent variables*, theorem 13, as in Maurer and
    Pontil, 2009, https://arxiv.org/abs/0907.3740, theorem 7. The better of the two.

    Args:
        value: f, from 0.
        step: c, above 0.
        growth: a, from 1.
        rows: n.
        error: probability, in (0, 1).
    """
    scaled, need = value / step, -math.log(error)
    spread = growth * need
    bernstein = spread + math.sqrt(spread**2 + 2 * spread * scaled)
    return value + step * min(bernstein, math.sqrt(rows * need / 2))
