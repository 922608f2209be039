"""A dual controller: the weight of a constraint that keeps it met at the least cost."""

import math
from dataclasses import dataclass

__all__ = ["DualController"]


@dataclass
class DualController:
    r"""Weight :math:`\lambda = \exp(u + p\, e)` with :math:`u \leftarrow u + r\, e`, for the relative deficit ``e``.

    The integral ``u`` is the logarithm of a Lagrange multiplier and rises while the constraint is violated, falls while
    it is met with room to spare; it needs no hand-set size, because it grows exponentially. The proportional part damps
    it. Clipping ``u`` itself keeps it from winding up at a bound. Source: the multiplier of GECO (Rezende and Viola,
    2018, https://arxiv.org/abs/1810.00597), with the proportional term of Stooke et al., 2020,
    https://arxiv.org/abs/2007.03964.

    Args:
        rate: ``r``, step of ``log weight`` for a relative deficit of 1.
        damping: ``p``.
        low: smallest weight.
        high: largest weight.
        log_weight: ``u``.
    """

    rate: float = 0.05
    damping: float = 1.0
    low: float = 1e-4
    high: float = 1e5
    log_weight: float = 0.0

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"`rate` must be positive, got {self.rate}.")
        if not self.damping >= 0:
            raise ValueError(f"`damping` must be at least 0, got {self.damping}.")
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"`low` and `high` must be 0 < low < high, got {self.low} and {self.high}.")

    def step(self, deficit: float) -> float:
        """The next weight.

        Args:
            deficit: what is missing to the target as a share of the scale of the quantity; clipped to [-1, 1].
        """
        error = max(-1.0, min(1.0, deficit))
        low, high = math.log(self.low), math.log(self.high)
        self.log_weight = max(low, min(high, self.log_weight + self.rate * error))
        return math.exp(max(low, min(high, self.log_weight + self.damping * error)))

    @property
    def weight(self) -> float:
        """The weight while nothing is missing."""
        return math.exp(self.log_weight)
