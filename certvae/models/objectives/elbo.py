"""The evidence lower bound with a weighted rate."""

from torch import Tensor

from certvae.models.objectives.base import Objective, Terms, check_weight
from certvae.models.schedules import Schedule, value_at

__all__ = ["ELBO"]


class ELBO(Objective):
    """Negative evidence lower bound of each row in nats, ``distortion + beta * rate``.

    Sources: Kingma and Welling, 2014, https://arxiv.org/abs/1312.6114; for ``beta`` Higgins et al., 2017 (beta-VAE);
    for schedules Bowman et al., 2016 (KL annealing) and Fu et al., 2019 (cyclical annealing).

    Args:
        beta: weight of the rate, at least 0, or a schedule of it; 1 gives the bound itself.

    Raises:
        ValueError: if ``beta`` is negative.
    """

    def __init__(self, beta: float | Schedule = 1.0) -> None:
        super().__init__()
        self.beta = check_weight(beta, "beta")

    def forward(self, terms: Terms) -> Tensor:
        return terms.distortion + value_at(self.beta, terms.progress) * terms.kl.sum(dim=1)
