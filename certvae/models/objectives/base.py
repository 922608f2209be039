"""The base class of objectives, which compute a row's loss from its distortion and its rate."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor, nn

from certvae.models.priors import Prior
from certvae.models.schedules import Schedule
from certvae.theory.posterior import Posterior

__all__ = ["Objective", "Terms", "check_weight"]

Weight = TypeVar("Weight", float, float | Schedule)


@dataclass(frozen=True)
class Terms:
    """The quantities of a batch that an objective may use.

    Attributes:
        distortion: negative log-likelihood of each row in nats, summed over its values, shape ``(B,)``.
        kl: divergence from the prior in nats, shape ``(B, latent_dim)``, or ``(B, 1)`` if only the row total is known.
        posterior: ``q(z|x)`` of each row.
        latents: a draw from the posterior, shape ``(B, latent_dim)``.
        prior: ``p(z)``.
        progress: epochs trained so far, including the fraction of the current one, for schedules; infinity in
            evaluation, so that losses of different epochs are comparable.
    """

    distortion: Tensor
    kl: Tensor
    posterior: Posterior
    latents: Tensor
    prior: Prior
    progress: float


class Objective(nn.Module):
    """Combines the terms of the evidence lower bound; to add an objective, write a small class like :class:`ELBO`."""

    @abstractmethod
    def forward(self, terms: Terms) -> Tensor:
        """Loss of each row in nats, shape ``(B,)``; a term of the whole batch is the same for every row."""


def check_weight(value: Weight, name: str) -> Weight:
    """Return ``value`` unchanged if it is a schedule or a number of at least 0.

    Raises:
        ValueError: if ``value`` is a number that is negative or not finite.
    """
    if not isinstance(value, Schedule) and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"`{name}` must be at least 0, got {value}.")
    return value
