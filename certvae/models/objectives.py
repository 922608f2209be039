"""Training objectives: how the distortion and the rate of a row become its loss."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from certvae.models.priors import Prior
from certvae.models.schedules import Schedule, value_at
from certvae.theory.posterior import Posterior

__all__ = ["ELBO", "Capacity", "FreeBits", "InfoVAE", "Objective", "Terms", "maximum_mean_discrepancy"]

Weight = TypeVar("Weight", float, float | Schedule)


@dataclass(frozen=True)
class Terms:
    """What an objective may use of a batch.

    Attributes:
        distortion: negative log-likelihood of each row in nats, a sum over its values, shape ``(B,)``.
        kl: divergence from the prior in nats, shape ``(B, latent_dim)``, or ``(B, 1)`` if only a row's is known.
        posterior: ``q(z|x)`` of each row.
        latents: a draw from it, shape ``(B, latent_dim)``.
        prior: ``p(z)``.
        progress: epochs trained so far, with the fraction of the running one, for schedules; infinity in evaluation,
            so that losses of different epochs compare.
    """

    distortion: Tensor
    kl: Tensor
    posterior: Posterior
    latents: Tensor
    prior: Prior
    progress: float


class Objective(nn.Module):
    """Combines the terms of the evidence lower bound; a baseline is another small class like :class:`ELBO`."""

    @abstractmethod
    def forward(self, terms: Terms) -> Tensor:
        """Loss of each row, shape ``(B,)``; a term of the whole batch is the same for every row."""


class ELBO(Objective):
    """Negative evidence lower bound, ``distortion + beta * rate``, with per-row sums.

    Sources: Kingma and Welling, 2014, https://arxiv.org/abs/1312.6114; for ``beta`` Higgins et al., 2017 (beta-VAE);
    for schedules Bowman et al., 2016 (KL annealing) and Fu et al., 2019 (cyclical annealing).

    Args:
        beta: weight of the rate, at least 0, or its schedule; 1 is the bound itself.

    Raises:
        ValueError: if ``beta`` is negative.
    """

    def __init__(self, beta: float | Schedule = 1.0) -> None:
        super().__init__()
        self.beta = _weight(beta, "beta")

    def forward(self, terms: Terms) -> Tensor:
        return terms.distortion + value_at(self.beta, terms.progress) * terms.kl.sum(dim=1)


class Capacity(Objective):
    r"""Holds the batch's rate at a capacity: :math:`distortion + \gamma\, |E\,rate - C|`.

    Source: Burgess et al., 2018, https://arxiv.org/abs/1804.03599, section 5; the batch mean inside the modulus, C up
    to 25 nats and gamma 1000 as in disentanglement_lib. A growing capacity is a ``LinearSchedule``.

    Args:
        capacity: C in nats, at least 0, or its schedule.
        gamma: weight, at least 0.

    Raises:
        ValueError: if an argument is negative.
    """

    def __init__(self, capacity: float | Schedule = 25.0, gamma: float = 1000.0) -> None:
        super().__init__()
        self.capacity, self.gamma = _weight(capacity, "capacity"), _weight(gamma, "gamma")

    def forward(self, terms: Terms) -> Tensor:
        rate = terms.kl.sum(dim=1).mean()
        return terms.distortion + self.gamma * (rate - value_at(self.capacity, terms.progress)).abs()


class FreeBits(Objective):
    r"""A dimension's rate costs nothing below a floor: :math:`distortion + \sum_j \max(floor, E\,kl_j)`.

    Source: Kingma et al., 2016, https://arxiv.org/abs/1606.04934, appendix C.8 (openai/iaf): the average of the batch
    within the maximum. The floor keeps a *rate*, not information: a constant posterior can hold it.

    Args:
        floor: nats of each latent dimension, at least 0.

    Raises:
        ValueError: if ``floor`` is negative; on use, if the prior does not give the divergence of each dimension.
    """

    def __init__(self, floor: float = 0.25) -> None:
        super().__init__()
        self.floor = _weight(floor, "floor")

    def forward(self, terms: Terms) -> Tensor:
        if terms.kl.shape[1] != terms.latents.shape[1]:
            raise ValueError(
                f"FreeBits needs the divergence of each of {terms.latents.shape[1]} latent dimensions, and "
                f"{type(terms.prior).__name__} gives {terms.kl.shape[1]} for each row. Use `StandardNormal` as `prior`."
            )
        return terms.distortion + terms.kl.mean(dim=0).clamp(min=self.floor).sum()


class InfoVAE(Objective):
    r"""Matches the aggregate posterior to the prior: :math:`distortion + (1 - \alpha)\, rate + w\, MMD(q(z), p(z))`.

    Source: Zhao et al., 2017, https://arxiv.org/abs/1706.02262, section 4 (alpha 1 is their MMD-VAE). There the weight
    of the divergence is ``alpha + lambda - 1``, which is negative for careless settings; here ``w`` itself is given.

    Args:
        alpha: at most 1; the rate's weight is ``1 - alpha``.
        mmd_weight: ``w``, positive.

    Raises:
        ValueError: if an argument is out of its range.
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
    r"""Squared maximum mean discrepancy of two samples, a scalar that is 0 exactly if they are equal, else positive.

    .. math:: E k(x, x') + E k(y, y') - 2 E k(x, y), \qquad k(x, y) = C / (C + |x - y|^2), \quad C = 2 d

    over all pairs, a row with itself included, so that it is a norm. Sources: Gretton et al., 2012, equation 5; the
    inverse multiquadratic kernel with this C from Tolstikhin et al., 2018, https://arxiv.org/abs/1711.01558.

    Args:
        one: shape ``(N, d)``.
        other: shape ``(M, d)``.
    """
    with torch.autocast(one.device.type, enabled=False):
        return _kernel(one, one).mean() + _kernel(other, other).mean() - 2 * _kernel(one, other).mean()


def _kernel(one: Tensor, other: Tensor) -> Tensor:
    # Not by a matrix product, whose rounding would differ between equal pairs.
    squares = torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    scale = 2 * one.shape[1]
    return scale / (scale + squares)


def _weight(value: Weight, name: str) -> Weight:
    if not isinstance(value, Schedule) and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"`{name}` must be at least 0, got {value}.")
    return value
