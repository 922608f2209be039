"""The information of a code, with rows themselves as the aggregate posterior."""

import torch
from torch import Tensor

from certvae.theory.posterior import Posterior

__all__ = ["aggregate_information"]

CHUNK = 2**22  # numbers held at once while rows are compared with each other


def aggregate_information(posterior: Posterior, seed: int = 0) -> Tensor:
    r"""Mutual information of the data point and the code, with the rows themselves as the aggregate posterior.

    .. math:: I = E\,KL(q(z|x) \| p) - KL(q(z) \| p) = E_x E_{q(z|x)} \log \frac{q(z|x)}{q(z)}, \qquad
              q(z) = \frac1B \sum_j q(z|x_j)

    with one draw for each row. The prior cancels. It cannot exceed :math:`\log B`, and its expectation is at most the
    true information, because it is the contrastive bound with the exact posterior as critic. Sources: Hoffman and
    Johnson, 2016, *ELBO surgery*; Poole et al., 2019, https://arxiv.org/abs/1905.06922, section 2.3.

    Args:
        posterior: of B rows, float64, shapes ``(B, latent_dim)``.
        seed: of the draws. The noise belongs to the row's place (:mod:`certvae.theory.row_noise`).

    Returns:
        Scalar in nats, at most ``log B``.
    """
    mean, log_variance = posterior
    rows, dim = mean.shape
    draws = posterior.row_draws(torch.arange(rows, device=mean.device), 1, seed)[0]
    precision, log_scale = (-log_variance).exp(), log_variance.sum(dim=1)
    information = mean.new_zeros(())
    for part in torch.arange(rows, device=mean.device).split(max(1, CHUNK // (rows * dim))):
        distance = ((draws[part, None] - mean) ** 2 * precision).sum(dim=2)
        log_density = -0.5 * (distance + log_scale)  # less a constant that cancels
        own = log_density[torch.arange(len(part)), part]
        information += (own - log_density.logsumexp(dim=1)).sum()
    return information / rows + torch.tensor(float(rows), dtype=mean.dtype).log().to(mean.device)
