"""A dual controller, which finds the smallest weight that satisfies a constraint."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DualController"]


@dataclass(frozen=True)
class DualController:
    r"""Weight :math:`\lambda = \exp(u + p\, e)` with :math:`u \leftarrow u + r\, e`, for the relative deficit ``e``.

    The integral ``u`` is the logarithm of a Lagrange multiplier. It rises while the constraint is violated and falls
    while it is satisfied with room to spare. The multiplier changes exponentially, so it needs no initial scale. The
    proportional part damps oscillations. Clipping ``u`` itself prevents integral windup. Source: the multiplier of GECO
    (Rezende and Viola, 2018, https://arxiv.org/abs/1810.00597), with the proportional term of Stooke et al., 2020,
    https://arxiv.org/abs/2007.03964.

    Args:
        rate: ``r``, the step of ``log weight`` for a relative deficit of 1; positive.
        damping: ``p``, at least 0.
        low: smallest weight, positive.
        high: largest weight, above ``low``.
        log_weight: ``u`` at the start.

    Example:
        >>> from certvae.callbacks import CertificateGuard, DualController
        >>> guard = CertificateGuard(target=0.5, controller=DualController(high=10))
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

    def step(self, log_weight: Tensor, deficit: Tensor) -> tuple[Tensor, Tensor]:
        """The next ``u`` and the next weight, scalars on the device of the arguments; does not wait for the device.

        Args:
            log_weight: ``u``, a scalar.
            deficit: distance below the target, relative to the scale of the quantity, a scalar; clipped to [-1, 1]. NaN
                (unknown) counts as 1.
        """
        error = torch.nan_to_num(deficit, nan=1.0).clamp(-1.0, 1.0)
        low, high = math.log(self.low), math.log(self.high)
        integral = (log_weight + self.rate * error).clamp(low, high)
        return integral, (integral + self.damping * error).clamp(low, high).exp()
