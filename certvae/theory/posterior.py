"""The approximate posterior of an encoder: a diagonal Gaussian."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from certvae.theory.arguments import as_whole_number
from certvae.theory.row_noise import as_keys, row_normal

__all__ = ["Posterior"]


class Posterior(NamedTuple):
    """Diagonal Gaussian ``q(z|x)``. It is used in training steps, so shapes and values are not checked.

    Attributes:
        mean: shape ``(B, latent_dim)``.
        log_variance: shape ``(B, latent_dim)``.
    """

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """A reparameterized draw ``mean + exp(log_variance / 2) * noise``; standard normal noise by default."""
        if noise is None:
            noise = torch.randn_like(self.mean)
        return self.mean + (0.5 * self.log_variance).exp() * noise.to(self.mean.dtype)

    def row_draws(self, keys: Tensor, samples: int, seed: int) -> Tensor:
        """Draws whose noise depends on the rows' keys only; see :mod:`certvae.theory.row_noise`.

        Args:
            keys: one integer a row, int64, shape ``(B,)``.
            samples: draws a row, at least 1.
            seed: another seed gives other draws.

        Returns:
            Codes, shape ``(samples, B, latent_dim)``.

        Raises:
            TypeError: if ``samples`` or ``seed`` is not a whole number, or ``keys`` are not an array of numbers.
            ValueError: if ``samples`` is below 1, or ``keys`` do not hold one integer a row.
        """
        rows, dim = self.mean.shape
        as_whole_number(samples, "samples", 1)
        if len(as_keys(keys)) != rows:
            raise ValueError(f"`keys` must hold one integer for each of {rows} rows, got {len(keys)}.")
        noise = row_normal(keys, samples * dim, seed).to(self.mean).view(rows, samples, dim)
        return torch.stack([self.sample(draw) for draw in noise.unbind(dim=1)])

    def log_density(self, latents: Tensor) -> Tensor:
        r""":math:`\log q(z|x)` in nats, a sum over coordinates.

        Args:
            latents: codes, broadcast with ``(B, latent_dim)``. Shape ``(B, latent_dim)``: each row's own code. Shape
                ``(N, 1, latent_dim)``: every code under every row's posterior.

        Returns:
            The broadcast shape without the last axis: ``(B,)`` or ``(N, B)``.
        """
        squares = (latents - self.mean) ** 2 * (-self.log_variance).exp()
        constant = (self.log_variance + math.log(2 * math.pi)).sum(dim=-1)
        return -0.5 * (squares.sum(dim=-1) + constant)

    def kl_to_standard_normal(self) -> Tensor:
        r""":math:`KL(q \| N(0, 1))` of each coordinate in nats, shape ``(B, latent_dim)``.

        Source: Kingma and Welling, 2014, appendix B, https://arxiv.org/abs/1312.6114.
        """
        # Not exp() - 1: in float32 the rate of a collapsed posterior would be rounding error, and could be negative.
        return 0.5 * (self.mean**2 + self.log_variance.expm1() - self.log_variance)
