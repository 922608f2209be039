"""Priors of the latent code."""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from certvae.theory.posterior import Posterior

__all__ = ["Prior", "StandardNormal", "VampPrior"]


class Prior(nn.Module):
    """A distribution of latent codes; a subclass defines its divergence from a posterior and how to draw from it."""

    def bind(self, encoder: nn.Module) -> None:
        """Called once by the model with its encoder, for priors that need it."""

    @abstractmethod
    def kl(self, posterior: Posterior, latents: Tensor) -> Tensor:
        r""":math:`KL(q(z|x) \| p(z))`, or an unbiased estimate of it from one draw.

        Args:
            posterior: ``q(z|x)``.
            latents: a draw from ``q(z|x)``, shape ``(B, latent_dim)``.

        Returns:
            Nats per row and coordinate, shape ``(B, latent_dim)``, or per row, shape ``(B, 1)``.
        """

    @abstractmethod
    def draws_like(self, latents: Tensor) -> Tensor:
        """Independent draws from the prior, with the dtype of ``latents`` and its shape ``(B, latent_dim)``."""


class StandardNormal(Prior):
    """``N(0, I)``, with the divergence in closed form (Kingma and Welling, 2014, appendix B)."""

    def kl(self, posterior: Posterior, latents: Tensor) -> Tensor:
        return posterior.kl_to_standard_normal()

    def draws_like(self, latents: Tensor) -> Tensor:
        return torch.randn_like(latents)


class VampPrior(Prior):
    r"""Mixture of the encoder's posteriors at K learned pseudo-inputs, :math:`p(z) = \tfrac 1K \sum_k q(z|u_k)`.

    The divergence is estimated from one draw as :math:`\log q(z|x) - \log p(z)`: unbiased, and negative for some rows.
    Pseudo-inputs are parameters, clipped to ``[0, 1]`` when they are used. Each step encodes all of them.

    Source: Tomczak and Welling, 2018, https://arxiv.org/abs/1705.07120, with a warm-up of the rate over 100 epochs:
    ``ELBO(beta=LinearSchedule(0, 1, 100))``.

    Args:
        pseudo_inputs: K, at least 1.
        mean: mean of the pseudo-inputs at the start; the mean of the data is a good choice.
        std: standard deviation of the pseudo-inputs at the start, positive.

    Raises:
        ValueError: if ``pseudo_inputs`` is below 1, ``std`` is not positive, or the encoder has no ``image_shape``.
    """

    def __init__(self, pseudo_inputs: int = 500, mean: float = 0.5, std: float = 0.1) -> None:
        super().__init__()
        if pseudo_inputs < 1:
            raise ValueError(f"`pseudo_inputs` must be at least 1, got {pseudo_inputs}.")
        if not (math.isfinite(std) and std > 0):
            raise ValueError(f"`std` must be positive, got {std}.")
        self.num_pseudo_inputs, self.mean, self.std = pseudo_inputs, mean, std
        # In a list, so that the encoder's parameters are not registered twice.
        self._encoder: list[nn.Module] = []

    def bind(self, encoder: nn.Module) -> None:
        shape = getattr(encoder, "image_shape", None)
        if shape is None:
            raise ValueError(
                f"`encoder` must have an attribute `image_shape` for a VampPrior; {type(encoder).__name__} has none."
            )
        self._encoder = [encoder]
        self.pseudo_inputs = nn.Parameter(self.mean + self.std * torch.randn(self.num_pseudo_inputs, *shape))

    def components(self) -> Posterior:
        """Posteriors of the pseudo-inputs, shape ``(K, latent_dim)``, in float32 or wider."""
        mean, log_variance = self._encoder[0](self.pseudo_inputs.clamp(0, 1))
        dtype = torch.promote_types(mean.dtype, torch.float32)
        return Posterior(mean.to(dtype), log_variance.to(dtype))

    def log_density(self, latents: Tensor) -> Tensor:
        r""":math:`\log p(z)` of codes ``(B, latent_dim)`` in nats, shape ``(B,)``."""
        densities = self.components().log_density(latents[:, None])
        return densities.logsumexp(dim=1) - math.log(self.num_pseudo_inputs)

    def kl(self, posterior: Posterior, latents: Tensor) -> Tensor:
        return (posterior.log_density(latents) - self.log_density(latents))[:, None]

    def draws_like(self, latents: Tensor) -> Tensor:
        chosen = torch.randint(self.num_pseudo_inputs, (len(latents),), device=latents.device)
        mean, log_variance = self.components()
        return Posterior(mean[chosen], log_variance[chosen]).sample().to(latents)
