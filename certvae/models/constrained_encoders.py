"""Wrappers that constrain the posterior of any encoder, so that its rate cannot fall to 0."""

import math
from abc import abstractmethod
from typing import Any

import torch
from scipy.special import lambertw
from torch import Tensor, nn

from certvae.theory.posterior import Posterior

__all__ = ["BatchNormEncoder", "DeltaEncoder"]


class _Constrained(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.latent_dim: int = encoder.latent_dim  # type: ignore[assignment]
        self.image_shape: Any = getattr(encoder, "image_shape", None)

    def forward(self, images: Tensor) -> Posterior:
        """Posterior of images, in float32 or wider."""
        mean, log_variance = self.encoder(images)
        dtype = torch.promote_types(mean.dtype, torch.float32)
        return self.constrain(mean.to(dtype), log_variance.to(dtype))

    @abstractmethod
    def constrain(self, mean: Tensor, log_variance: Tensor) -> Posterior:
        """Posterior from the encoder's outputs, each of shape ``(B, latent_dim)``."""


class DeltaEncoder(_Constrained):
    r"""Keeps the rate of every latent dimension at or above a floor: :math:`KL(q \| N(0, 1)) \ge \delta`.

    .. math:: s^2 = l + (u - l)\, sigmoid(a), \qquad \mu = \sqrt{2\delta + 1 + \log s^2 - s^2} + \max(0, m)

    for the encoder's output ``(m, a)``; l and u are the two variances at which the root is 0. This rate is not
    information: a constant posterior has it too.

    Source: the static case of delta-VAE, Razavi et al., 2019, https://arxiv.org/abs/1901.03416, section 2 and the
    appendix on bounds; 0.15 nats as in Zhu et al., 2020 (valdersoul/bn-vae). l and u have a closed form with Lambert's
    W, :math:`-W(-e^{-1 - 2\delta})` on its two branches.

    Args:
        encoder: any encoder, with ``latent_dim``.
        rate: delta in nats per dimension, in ``(0, 20]``.

    Raises:
        ValueError: if ``rate`` is not in (0, 20].
    """

    def __init__(self, encoder: nn.Module, rate: float = 0.15) -> None:
        super().__init__(encoder)
        if not 0 < rate <= 20:
            raise ValueError(f"`rate` must be above 0 and at most 20 nats, got {rate}.")
        self.rate = rate
        point = -math.exp(-1 - 2 * rate)
        self.lowest, self.highest = (float(-lambertw(point, branch).real) for branch in (0, -1))

    def constrain(self, mean: Tensor, log_variance: Tensor) -> Posterior:
        """The constrained posterior of the encoder's answer."""
        variance = self.lowest + (self.highest - self.lowest) * log_variance.sigmoid()
        # At the ends of the interval the root is rounding noise, and its slope is infinite.
        offset = (2 * self.rate + 1 + variance.log() - variance).clamp(min=1e-6).sqrt()
        return Posterior(offset + mean.relu(), variance.log())


class BatchNormEncoder(_Constrained):
    r"""Applies batch normalization to the posterior mean, with a fixed scale and a learned bias.

    In training, the batch's rate is at least :math:`\sum_j (\gamma^2 + b_j^2) / 2` nats, because :math:`E \mu^2 =
    \gamma^2 + b^2` and the variance term is not negative. In evaluation the running averages are used, so a row's code
    does not depend on the other rows. Batches need at least two rows. With several processes, set ``sync_batchnorm:
    true`` in the trainer.

    Source: BN-VAE, Zhu et al., 2020, https://arxiv.org/abs/2004.12585, section 3: the scale is frozen, the bias
    learned.

    Args:
        encoder: any encoder, with ``latent_dim``.
        scale: :math:`\gamma`, positive.

    Raises:
        ValueError: if ``scale`` is not positive.
    """

    def __init__(self, encoder: nn.Module, scale: float = 0.5) -> None:
        super().__init__(encoder)
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"`scale` must be positive, got {scale}.")
        # With the usual 1e-5, an encoder whose means shrink below 3e-3 would undo the norm and collapse.
        self.norm = nn.BatchNorm1d(self.latent_dim, eps=1e-20)
        nn.init.constant_(self.norm.weight, scale)
        self.norm.weight.requires_grad_(False)

    def constrain(self, mean: Tensor, log_variance: Tensor) -> Posterior:
        """The constrained posterior of the encoder's answer."""
        normed = self.norm(mean.to(self.norm.weight.dtype))  # a norm in bfloat16 rejects wider inputs
        return Posterior(normed.to(mean), log_variance)
