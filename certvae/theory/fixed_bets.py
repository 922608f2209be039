"""Confidence bounds, by fixed bets, on the average mean of independent numbers with a limit on one side."""

import math

import torch
from torch import Tensor

__all__ = ["lower_bound_of_mean", "upper_bound_of_mean"]

SMALLEST, LARGEST, BETS = 1e-4, 0.999, 16  # stakes as shares of the wealth, evenly spaced in the logarithm
HALVINGS = 22  # leaves an error of a millionth of the bound's distance from the limit


def lower_bound_of_mean(values: Tensor, least: float, error: float) -> float:
    r"""Lower confidence bound on the average mean of independent numbers; it errs with probability ``error``.

    .. math::
        \inf \left\{ m > a : \frac1K \sum_k \prod_i \left(1 + c_k \frac{y_i - m}{m - a}\right) < 1 / \alpha \right\}

    The numbers may have different distributions and no upper limit. Their order does not matter, because the stakes
    :math:`c_k` are fixed in advance. Proof in docs/information.md. Source of the idea: Waudby-Smith and Ramdas, 2023,
    https://arxiv.org/abs/2010.09686, section 4; their stakes adapt to the numbers and need equal means.

    Args:
        values: float64, shape ``(n,)``, none below ``least``.
        least: the lower limit a, known in advance.
        error: error probability alpha, in (0, 1).

    Returns:
        The bound; at least ``least``.
    """
    above = (values - least).clamp(min=0)
    low, high = 0.0, float(above.mean())
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if middle <= 0 or _log_wealth(above / middle) < -math.log(error):
            high = middle
        else:
            low = middle
    return least + low


def _log_wealth(ratios: Tensor) -> float:
    stakes = torch.logspace(math.log10(SMALLEST), math.log10(LARGEST), BETS, dtype=ratios.dtype, device=ratios.device)
    logs = torch.zeros_like(stakes)
    for part in ratios.split(2**16):
        logs += torch.log1p(stakes[:, None] * (part - 1)).sum(dim=1)
    return float(logs.logsumexp(dim=0)) - math.log(BETS)


def upper_bound_of_mean(values: Tensor, most: float, error: float) -> float:
    """Upper confidence bound on the average mean of independent numbers; see :func:`lower_bound_of_mean`.

    Args:
        values: float64, shape ``(n,)``, none above ``most``.
        most: the upper limit, known in advance.
        error: error probability, in (0, 1).

    """
    return -lower_bound_of_mean(-values, -most, error)
