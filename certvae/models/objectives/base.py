"""What every objective is: how the distortion and the rate of a row become its loss."""

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
    """Combines the terms of the evidence lower bound; another objective is another small class like :class:`ELBO`."""

    @abstractmethod
    def forward(self, terms: Terms) -> Tensor:
        """Loss of each row, shape ``(B,)``; a term of the whole batch is the same for every row."""


def check_weight(value: Weight, name: str) -> Weight:
    """A number of at least 0, or a schedule, as it is.

    Raises:
        ValueError: if it is a number that is negative or not finite.
    """
    if not isinstance(value, Schedule) and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"`{name}` must be at least 0, got {value}.")
    return value
