"""Training objectives: how the distortion and the rate of a row become its loss."""

from abc import abstractmethod

from torch import Tensor, nn

__all__ = ["ELBO", "Objective"]


class Objective(nn.Module):
    """Combines the terms of the evidence lower bound; a baseline is another small class like :class:`ELBO`."""

    @abstractmethod
    def forward(self, distortion: Tensor, kl: Tensor, epoch: int) -> Tensor:
        """Loss of each row.

        Args:
            distortion: negative log-likelihood of each row in nats, a sum over its values, shape ``(B,)``.
            kl: divergence from the prior in nats, shape ``(B, latent_dim)`` or ``(B, 1)``.
            epoch: epochs completed, for schedules.

        Returns:
            Shape ``(B,)``.
        """


class ELBO(Objective):
    """Negative evidence lower bound, ``distortion + beta * rate``, with per-row sums.

    Sources: Kingma and Welling, 2014, https://arxiv.org/abs/1312.6114; Higgins et al., 2017, for ``beta``.

    Args:
        beta: weight of the rate, at least 0; 1 is the bound itself.

    Raises:
        ValueError: if ``beta`` is negative.
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        if beta < 0:
            raise ValueError(f"`beta` must be at least 0, got {beta}.")
        self.beta = beta

    def forward(self, distortion: Tensor, kl: Tensor, epoch: int) -> Tensor:  # noqa: D102
        return distortion + self.beta * kl.sum(dim=1)
