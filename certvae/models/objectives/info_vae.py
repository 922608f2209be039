"""The objective that matches the aggregate posterior to the prior by the maximum mean discrepancy."""

import math

import torch
from torch import Tensor

from certvae.models.objectives.base import Objective, Terms

__all__ = ["InfoVAE", "maximum_mean_discrepancy"]


class InfoVAE(Objective):
    r"""Matches the aggregate posterior to the prior: :math:`distortion + (1 - \alpha)\, rate + w\, MMD(q(z), p(z))`.

    Source: Zhao et al., 2017, https://arxiv.org/abs/1706.02262, section 4 (``alpha=1`` is their MMD-VAE). In the paper
        the weight of the discrepancy is ``alpha + lambda - 1``, which some settings make negative; here you give ``w``
        itself.

    With ``alpha`` near 1 hardly anything limits the log-variance, because the kernel is flat far away. Where the
    distortion is weak, training can then diverge.

    Args:
        alpha: at most 1; the rate's weight is ``1 - alpha``.
        mmd_weight: ``w``, positive.

    Raises:
        ValueError: if ``alpha`` is above 1, or ``mmd_weight`` is not positive.
    """

    def __init__(self, alpha: float = 1.0, mmd_weight: float = 100.0) -> None:
        super().__init__()
        if not alpha <= 1:
            raise ValueError(f"`alpha` must be at most 1, got {alpha}.")
        if not (math.isfinite(mmd_weight) and mmd_weight > 0):
            raise ValueError(f"`mmd_weight` must be positive, got {mmd_weight}.")
        self.alpha, self.mmd_weight = alpha, mmd_weight

    def forward(self, terms: Terms) -> Tensor:
        discrepancy = maximum_mean_discrepancy(terms.latents, terms.prior.draws_like(terms.latents))
        return terms.distortion + (1 - self.alpha) * terms.kl.sum(dim=1) + self.mmd_weight * discrepancy


def maximum_mean_discrepancy(one: Tensor, other: Tensor) -> Tensor:
    r"""Squared maximum mean discrepancy of two samples: a scalar, 0 if and only if the samples are equal.

    .. math:: E k(x, x') + E k(y, y') - 2 E k(x, y), \qquad k(x, y) = C / (C + |x - y|^2), \quad C = 2 d

    over all pairs, including each row with itself, so that the result is never negative. Sources: Gretton et al., 2012,
    equation 5; the inverse multiquadratic kernel with this C from Tolstikhin et al., 2018,
    https://arxiv.org/abs/1711.01558.

    Args:
        one: shape ``(N, d)``.
        other: shape ``(M, d)``.
    """
    with torch.autocast(one.device.type, enabled=False):
        return _kernel(one, one).mean() + _kernel(other, other).mean() - 2 * _kernel(one, other).mean()


def _kernel(one: Tensor, other: Tensor) -> Tensor:
    # Not a matrix product: its rounding would differ between equal pairs.
    squares = torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    scale = 2 * one.shape[1]
    return scale / (scale + squares)
