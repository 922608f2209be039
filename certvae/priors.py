"""Priors of the latent code."""

from abc import abstractmethod

from torch import Tensor, nn

from certvae.posterior import Posterior

__all__ = ["Prior", "StandardNormal"]


class Prior(nn.Module):
    """A distribution of latent codes; a new one states its divergence from a posterior."""

    @abstractmethod
    def kl(self, posterior: Posterior, latents: Tensor) -> Tensor:
        r""":math:`KL(q(z|x) \| p(z))`, or an unbiased estimate of it from one draw.

        Args:
            posterior: ``q(z|x)``.
            latents: a draw from it, shape ``(B, latent_dim)``.

        Returns:
            Nats of each row and coordinate, shape ``(B, latent_dim)``, or of each row, shape ``(B, 1)``.
        """


class StandardNormal(Prior):
    """``N(0, I)``, with the divergence in closed form (Kingma and Welling, 2014, appendix B)."""

    def kl(self, posterior: Posterior, latents: Tensor) -> Tensor:  # noqa: D102
        return posterior.kl_to_standard_normal()
