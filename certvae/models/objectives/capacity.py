"""The objective that holds the rate at a capacity."""

from torch import Tensor

from certvae.models.objectives.base import Objective, Terms, check_weight
from certvae.models.schedules import Schedule, value_at

__all__ = ["Capacity"]


class Capacity(Objective):
    r"""Holds the batch's rate at a capacity: :math:`distortion + \gamma\, |E\,rate - C|`.

    Source: Burgess et al., 2018, https://arxiv.org/abs/1804.03599, section 5. As in disentanglement_lib, the batch mean
        is inside the absolute value; there C is at most 25 nats and gamma is 1000. For a growing capacity, give a
        ``LinearSchedule``.

    Args:
        capacity: C in nats, at least 0, or a schedule of it.
        gamma: weight, at least 0.

    Raises:
        ValueError: if an argument is negative.
    """

    def __init__(self, capacity: float | Schedule = 25.0, gamma: float = 1000.0) -> None:
        super().__init__()
        self.capacity, self.gamma = check_weight(capacity, "capacity"), check_weight(gamma, "gamma")

    def forward(self, terms: Terms) -> Tensor:
        rate = terms.kl.sum(dim=1).mean()
        return terms.distortion + self.gamma * (rate - value_at(self.capacity, terms.progress)).abs()
