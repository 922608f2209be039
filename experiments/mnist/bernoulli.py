"""A VAE of pixels in [0, 1] with a Bernoulli likelihood, and its likelihood by importance sampling."""

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from certvae import VAE

__all__ = ["BernoulliVAE", "log_likelihood"]


class BernoulliVAE(VAE):
    """A VAE whose decoder gives the logits of the pixels; ``observation_std`` is not used."""

    def expectation(self, decoded: Tensor) -> Tensor:
        """The probability of each pixel."""
        return decoded.sigmoid()

    def distortion(self, images: Tensor, decoded: Tensor) -> Tensor:
        """Cross-entropy of the pixels in nats, shape ``(B,)``."""
        entropy = binary_cross_entropy_with_logits(decoded, images, reduction="none")
        return entropy.flatten(start_dim=1).sum(dim=1)


@torch.no_grad()
def log_likelihood(model: VAE, images: Tensor, samples: int) -> Tensor:
    r"""A lower bound of :math:`\log p(x)` in expectation, which tends to it as ``samples`` grow.

    .. math:: \log \frac 1S \sum_s \frac{p(x | z_s)\, p(z_s)}{q(z_s | x)}, \qquad z_s \sim q(\cdot | x)

    Source: Burda et al., 2016, https://arxiv.org/abs/1509.00519, equation 8.

    Args:
        model: its distortion must be the whole negative log-likelihood, and its prior the standard normal.
        images: shape ``(B, *image_shape)``.
        samples: S.

    Returns:
        Nats, shape ``(B,)``.
    """
    posterior = model(images)
    weights = []
    for _ in range(samples):
        codes = posterior.sample()
        prior = -0.5 * (codes**2 + math.log(2 * math.pi)).sum(dim=1)
        weights.append(prior - posterior.log_density(codes) - model.distortion(images, model.decode(codes)))
    return torch.stack(weights).logsumexp(dim=0) - math.log(samples)
