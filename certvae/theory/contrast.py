"""Summands of the contrastive bounds: the density of a row's code under the row itself and under other rows."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from certvae.theory.posterior import Posterior

__all__ = ["Contrast", "PairDensity", "aggregate_information", "contrast", "gaussian_contrast", "gaussian_density"]

CHUNK = 2**22  # values held in memory while rows are compared with each other
LARGEST_SQUARE = 1e9  # of a standardized code: a difference of squares then gives log-densities to 1e-6 in float64

PairDensity = Callable[[Tensor], Tensor]


class Contrast(NamedTuple):
    r"""Summands of one block of B rows, with :math:`l_{ij} = \log q(z_i|x_j)`; each of shape ``(B,)``, in nats.

    Attributes:
        lower: :math:`l_{ii} - \log \frac1B \sum_j e^{l_{ij}}`, at most ``log B``.
        upper: :math:`l_{ii} - \log \frac1{B-1} \sum_{j \ne i} e^{l_{ij}}`; infinite in a block of one row.
        lower_influence: contribution of the row to the sum of ``lower``, as code and as reference for other rows.
        upper_influence: the same for ``upper``.
    """

    lower: Tensor
    upper: Tensor
    lower_influence: Tensor
    upper_influence: Tensor


def contrast(density: PairDensity, own: Tensor, chunk: int = CHUNK) -> Contrast:
    r"""Summands and influences of a block of rows, in nats.

    A row enters the sums twice: by its own summand, and by lowering those of other rows, :math:`1 - \sum_i w_{ij}`,
    where :math:`w_{ij}` is its share of the density at code i. The influence is the sum of both. It is the first-order
    term of the average in the distribution of the rows, and gives the standard error.

    Args:
        density: maps positions i, int64, shape ``(n,)``, to :math:`l_{ij}` for all j, shape ``(n, B)``. The result is
            overwritten, and its diagonal is not used.
        own: :math:`l_{ii}`, float64, shape ``(B,)``.
        chunk: approximate number of values held in memory.
    """
    rows = len(own)
    places = torch.arange(rows, device=own.device)
    lower, upper, shares, other_shares = own.new_zeros(4, rows).unbind()
    for part in places.split(max(1, chunk // rows)):
        table = density(part)
        table[torch.arange(len(part)), part] = -torch.inf
        largest = table.amax(dim=1)
        largest = torch.where(largest.isfinite(), largest, torch.zeros_like(largest))
        weights = table.sub_(largest[:, None]).exp_()
        total = weights.sum(dim=1)
        others = largest + total.log()
        whole = torch.logaddexp(others, own[part])
        lower[part] = own[part] - whole + math.log(rows)
        upper[part] = own[part] - others + math.log(max(rows - 1, 1))
        inverse = torch.where(total > 0, 1 / total, torch.zeros_like(total))
        other_shares += inverse @ weights
        shares += (inverse * (others - whole).exp()) @ weights
        shares[part] += (own[part] - whole).exp()
    return Contrast(lower, upper, lower + 1 - shares, upper + 1 - other_shares)


def gaussian_density(posterior: Posterior, draws: Tensor, chunk: int = CHUNK) -> PairDensity:
    r"""Log-densities in nats of every draw under every row's Gaussian, up to a constant that cancels.

    They are computed by a matrix product. If the codes are so precise that it would lose digits in float64, differences
    are formed one by one, which takes about ten times as long.

    Args:
        posterior: of B rows, float64, centered.
        draws: one code a row, shape ``(B, latent_dim)``.
        chunk: approximate number of values held in memory.
    """
    mean, log_variance = posterior
    precision, log_scale = (-log_variance).exp(), log_variance.sum(dim=1)
    farthest = torch.maximum(draws.abs(), mean.abs()).amax(dim=0)
    if float((farthest**2 * precision.amax(dim=0)).sum()) > LARGEST_SQUARE:
        size = max(1, chunk // mean.numel())
        return lambda part: torch.cat(
            [-0.5 * (((draws[few, None] - mean) ** 2 * precision).sum(dim=2) + log_scale) for few in part.split(size)]
        )
    columns = torch.cat([-0.5 * precision, mean * precision], dim=1).T
    constant = -0.5 * ((mean**2 * precision).sum(dim=1) + log_scale)
    features = torch.cat([draws**2, draws], dim=1)
    return lambda part: torch.addmm(constant, features[part], columns)


def aggregate_information(posterior: Posterior, seed: int = 0) -> Tensor:
    r"""Mutual information of the data point and the code in nats, with the rows' mixture as aggregate posterior.

    .. math:: I = E\,KL(q(z|x) \| p) - KL(q(z) \| p) = E_x E_{q(z|x)} \log \frac{q(z|x)}{q(z)}, \qquad
              q(z) = \frac1B \sum_j q(z|x_j)

    with one draw for each row. The prior cancels. It cannot exceed :math:`\log B`, and its expectation is at most the
    true information: it is the lower side of :func:`certvae.theory.bracket.information_bracket` with one block.
    Sources: Hoffman and Johnson, 2016, *ELBO surgery*; Poole et al., 2019, https://arxiv.org/abs/1905.06922, section
    2.3.

    Args:
        posterior: of B rows, float64, shapes ``(B, latent_dim)``.
        seed: of the draws. The noise depends on the row's position (:mod:`certvae.theory.row_noise`).

    Returns:
        Scalar in nats, at most ``log B``.
    """
    centered = Posterior(posterior.mean - posterior.mean.mean(dim=0), posterior.log_variance)
    return gaussian_contrast(centered, torch.arange(len(centered.mean)), seed).lower.mean()


def gaussian_contrast(posterior: Posterior, keys: Tensor, seed: int, chunk: int = CHUNK) -> Contrast:
    """Summands of one block, in nats, with one draw a row whose noise depends on the row's key.

    Args:
        posterior: of B rows, float64, centered.
        keys: one integer a row, int64, shape ``(B,)``.
        seed: of the draws.
        chunk: approximate number of values held in memory.
    """
    mean, log_variance = posterior
    draws = posterior.row_draws(keys.to(mean.device), 1, seed)[0]
    own = -0.5 * ((draws - mean) ** 2 * (-log_variance).exp() + log_variance).sum(dim=1)
    return contrast(gaussian_density(posterior, draws, chunk), own, chunk)
